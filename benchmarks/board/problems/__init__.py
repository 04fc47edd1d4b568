"""Problems: each file has `PROBLEMS`."""
