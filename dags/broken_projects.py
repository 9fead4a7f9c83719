"""Report the projects that cannot be loaded. This file makes no DAG.

The DAGs of such a project are missing, those of the others are there. Airflow lists this file among its import errors, with the file and the line that
are wrong.
"""

from include.dag_kit.projects import report_broken_projects

report_broken_projects()
