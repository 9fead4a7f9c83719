"""Report the projects that cannot be loaded. This file does not define a DAG.

The DAGs of such a project are missing. The DAGs of the other projects are not affected. Airflow
lists this file among its import errors, with the file and line that caused the error.
"""

from include.dag_kit.projects import report_broken_projects

report_broken_projects()
