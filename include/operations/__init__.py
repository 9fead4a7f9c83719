"""What operators do to a whole installation: freeze and thaw it, back it up and restore it, ask what is wrong with it."""
