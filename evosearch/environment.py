"""Environment variables that disable the telemetry of libraries; set them before the imports."""

import os

# Read by huggingface_hub, datasets, MLflow and Ray; DO_NOT_TRACK also by other libraries
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def telemetry_off() -> None:
    """Set the variables that the user has not set."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
