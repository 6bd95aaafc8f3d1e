"""What these tests share is imported where Lightning is installed."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("lightning") else ["parts.py", "worker.py"]
