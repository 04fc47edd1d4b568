"""lm-eval tasks by name, from a suite's include folders or from lm-eval's library.

lm-eval indexes the include folders only; a name that is missing there is looked up in the library, and its folder is
added to the index. Names thus resolve as with `lm_eval --include_path`, without the 14 to 25 seconds that indexing the
full library takes. lm-eval is imported lazily.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.data_files import check_json_lines, with_data_files
from evosearch.evaluation.suites.dataset_limits import limited
from evosearch.evaluation.suites.library import library_files, library_tags


class TaskLibrary:
    """Tasks, groups and tags by name.

    Args:
        folders: Folders with task YAMLs; their names take precedence over the library's.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._manager = _manager(folders)
        self._own = list(self._manager.all_tasks)
        self._added: set[Path] = set()

    def load(self, where: str, name: str, group: str = "", answers: bool = True) -> Any:
        """Return a new lm-eval task object.

        Args:
            where: The suite's key, for errors.
            name: Name of a leaf task.
            group: Group or tag that the task was selected by; its overrides apply to the task.
            answers: Whether the documents must have right answers; a task alone may be loaded without.

        Raises:
            SuiteError: The name is unknown or a group, or lm-eval cannot load the task.
        """
        entry = self._find(where, group or name)
        if not group and self._is_group(entry):
            hint = "Use the group as `task: NAME`, and write its `group:` key at the start of a line in its YAML"
            raise SuiteError(where, f"'{name}' is a group or tag of lm-eval, not a task", next=hint)
        if group:
            return self.members(where, group)[name]
        if answers:
            return self._load(where, name)[name]
        with self._without_target(where, name):
            return self._load(where, name)[name]

    def is_public(self, name: str) -> bool:
        """Return whether a leaf task comes from lm-eval's library and thus is a public benchmark."""
        return name.split("::")[0] not in self._own

    def members(self, where: str, group: str) -> dict[str, Any]:
        """Return leaf task → task object of a group or tag, with the group's overrides applied."""
        for name in self.leaves(where, group):
            if name in self._manager.task_index:
                self._resolve_data_files(where, name)
        return self._load(where, group)

    def leaves(self, where: str, group: str) -> list[str]:
        """Return the leaf tasks of a group or tag, in lm-eval's order, without reading data."""
        return list(dict.fromkeys(self._leaves(where, self._find(where, group), ())))

    def weights_by_size(self, where: str, group: str, metric: str) -> bool:
        """Return whether the group's aggregation of `metric` weights tasks by their number of documents."""
        rules = (self._find(where, group).cfg or {}).get("aggregate_metric_list") or []
        for rule in [rules] if isinstance(rules, dict) else rules:
            if rule.get("metric") == metric:
                return bool(rule.get("weight_by_size", True))
        return False

    def _load(self, where: str, name: str) -> dict[str, Any]:
        if name in self._manager.task_index:
            self._resolve_data_files(where, name)
        try:
            with wrap_errors(where, f"lm-eval cannot load '{name}'"), limited(where, name):
                return dict(self._manager.load([name])["tasks"])
        except SuiteError as exc:
            if name in self._manager.task_index:
                check_json_lines(self._manager.task_index[name].cfg or {}, where)
            if isinstance(exc.__cause__, IndexError):  # lm-eval looks the first document's answer up in its choices
                allowed = "At least two choices (doc_to_choice), and a right answer among them (doc_to_target)"
                raise SuiteError(exc.where, exc.what, allowed, "Check the first document") from exc
            raise

    def _find(self, where: str, name: str) -> Any:
        """Index entry of a name; indexes its library folder on demand."""
        if not self._indexed(name):
            known = sorted(self._own)
            allowed = f"Tasks of the include folders: {', '.join(known[:20]) or 'none'}"
            raise SuiteError(where, f"unknown task '{name}'", allowed, did_you_mean(name, [*known, *library_files()]))
        return self._manager.task_index[name]

    def _indexed(self, name: str) -> bool:
        index = self._manager.task_index
        if name not in index:
            if name in library_files():
                self._add(library_files()[name].parent)
            for folder in library_tags().get(name, ()):
                self._add(folder)
        return name in index

    def _add(self, folder: Path) -> None:
        """Index a folder of the library; existing names are kept."""
        if folder in self._added:
            return
        self._added.add(folder)
        index = self._manager.task_index
        for name, entry in _manager([folder]).task_index.items():
            if name in index:
                index[name].tags |= entry.tags if self._is_tag(index[name]) and self._is_tag(entry) else set()
            else:
                index[name] = entry

    def _leaves(self, where: str, entry: Any, above: tuple[str, ...]) -> Iterator[str]:
        if entry.name in above:
            raise SuiteError(where, f"the group '{entry.name}' contains itself", next="Fix the group's YAML")
        if self._is_tag(entry):
            yield from sorted(entry.tags)
        elif self._is_group(entry):
            yield from self._members(where, entry.name, entry.cfg or {}, (*above, entry.name))
        else:
            yield entry.name

    def _members(self, where: str, group: str, config: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[str]:
        """Leaf tasks of a group's config, named as in lm-eval: tasks defined inline get a prefix."""
        named = config.get("task")
        for item in named if isinstance(named, list) else []:
            name = item if isinstance(item, str) else item.get("group") or item.get("task")
            if self._indexed(name):
                yield from self._leaves(where, self._manager.task_index[name], above)
            elif isinstance(item, dict) and "group" in item:
                yield from self._members(where, f"{group}::{name}", item, above)
            elif isinstance(item, dict):
                yield f"{group}::{name}"
            else:
                what = f"the group '{group}' refers to the unknown task '{name}'"
                raise SuiteError(where, what, next="Fix the group's YAML")

    def _resolve_data_files(self, where: str, name: str) -> None:
        """Resolve an entry's relative data files against the folder of its YAML.

        lm-eval resolves them against the working directory, which differs between a shell and a worker.
        """
        from lm_eval.tasks._yaml_loader import load_yaml

        entry = self._manager.task_index[name]
        if entry.yaml_path is None:
            return
        folder = entry.yaml_path.parent
        if with_data_files(where, name, entry.cfg or {}, folder) != (entry.cfg or {}):
            with wrap_errors(where, f"lm-eval cannot load '{name}'"):
                full: dict[str, Any] = load_yaml(entry.yaml_path, resolve_func=True)
            entry.cfg, entry.yaml_path = with_data_files(where, name, full, folder), None

    @contextmanager
    def _without_target(self, where: str, name: str) -> Iterator[None]:
        """Remove the target from a task's YAML inside the block: lm-eval reads that of the first document at once.

        The target stays if it is a text to read (`loglikelihood`), or if the task is a Python class.
        """
        from lm_eval.tasks._yaml_loader import load_yaml

        entry = self._manager.task_index[name]
        before = entry.cfg, entry.yaml_path
        with wrap_errors(where, f"lm-eval cannot load '{name}'"):
            config = dict(load_yaml(entry.yaml_path, resolve_func=True) if entry.yaml_path else entry.cfg or {})
        if config.get("output_type") in ("generate_until", "multiple_choice") and "class" not in config:
            placed = config if entry.yaml_path is None else with_data_files(where, name, config, entry.yaml_path.parent)
            entry.cfg, entry.yaml_path = {**placed, "doc_to_target": ""}, None
        try:
            yield
        finally:
            entry.cfg, entry.yaml_path = before

    @staticmethod
    def _is_group(entry: Any) -> bool:
        return entry.kind.name in ("GROUP", "TAG")

    @staticmethod
    def _is_tag(entry: Any) -> bool:
        return bool(entry.kind.name == "TAG")


@contextmanager
def wrap_errors(where: str, what: str) -> Iterator[None]:
    """Convert any exception of lm-eval or of a task's code into a SuiteError at the suite's key."""
    try:
        yield
    except SuiteError:
        raise
    except Exception as exc:
        reason = next((line for line in str(exc).splitlines() if line.strip()), "")
        raise SuiteError(where, f"{what}: {type(exc).__name__}: {reason}") from exc


def _manager(folders: Sequence[Path]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=False)
