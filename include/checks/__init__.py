"""`airloop check`: what is wrong with a project, without running it. Looked at: its declaration, its Feast objects, and the data that was ingested."""
