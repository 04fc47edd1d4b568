"""Environment variables that disable the telemetry of libraries, and those that workers do not need."""

import os

# Set these before the imports. Read by huggingface_hub, datasets, MLflow and Ray; DO_NOT_TRACK also by other libraries
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# Accounts of the ledger, the tracking store and its artifacts: only the process that runs a search uses them
CONTROLLER_SECRETS = (
    "PGPASSWORD",
    "PGPASSFILE",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)


def telemetry_off() -> None:
    """Set the variables that the user has not set."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
