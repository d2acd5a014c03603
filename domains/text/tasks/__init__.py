"""Tasks that test memory, made from numbers alone or from the user's own books: `load_task` (docs/text_tasks.md)."""

from domains.text.tasks.registry import TASKS, load_task
from domains.text.tasks.task import Example, Examples, Task, examples

__all__ = ["TASKS", "Example", "Examples", "Task", "examples", "load_task"]
