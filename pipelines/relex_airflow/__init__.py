"""relex on Airflow: the window sensor, the stages as tasks, and the DAG.

    from relex_airflow.dag import build_dag
    from relex_airflow.places import Pods

    dag = build_dag("relex", Pods(image="registry.example/relex@sha256:..."))

Importing this package loads neither Airflow nor torch: the judgement of the window runs in a process of its own, and
the bare install of relex is all that an Airflow environment needs.
"""
