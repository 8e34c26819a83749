"""relex: extrapolate RLVR checkpoints, and promote one only when it is shown to help.

The stages, in order; each is one public function, called alike by the command line, by the
Kubeflow components and by the Airflow tasks:

    collect      RunSpec                       -> WindowManifest   (which checkpoints are the observation window)
    fit          WindowManifest                -> FitArtifact      (one direction and one line per weight tensor)
    forecast     FitArtifact                   -> Forecast         (what extrapolating can be expected to do)
    extrapolate  FitArtifact                   -> checkpoints      (base + scale * coefficient * direction)
    evaluate     checkpoints                   -> EvalResults      (accuracy with error bars)
    decide       EvalResults                   -> Decision         (promote one, or keep what was observed)
    report       run directory                 -> report.html      (all of it on one page)
    publish      Decision                      -> published.json   (which checkpoint to use)

Importing this package loads neither torch nor a cloud client.
"""

__version__ = "0.1.0"
