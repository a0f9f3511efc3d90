"""Use from training frameworks. Each module imports its framework, if at all, when it is asked to do something."""
