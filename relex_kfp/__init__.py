"""relex on Kubeflow: components, the pipeline, and what compiles, submits and schedules it.

`relex_kfp.components` and `relex_kfp.pipelines` lie in components/ and pipelines/ of the repository. Importing this
package loads no kfp, so a watcher can ask for what it needs.
"""
