"""What every process of ours tells its libraries before it imports them: nobody is called home."""

import os

# Read by huggingface_hub, datasets, MLflow, Ray, and whatever else honours the common switch
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def telemetry_off() -> None:
    """Set what is not set; a user who says otherwise is heard."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
