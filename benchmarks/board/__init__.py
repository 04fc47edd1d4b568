"""The board: problems × methods × optimizers × seeds at equal item evaluations, judged on unseen documents."""
