"""The checks before a run on a cluster: what every node is and lacks, and the settings that all nodes then share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.digest import content_digest
from harness.core.errors import ConfigError, DeviceError, SettingsError
from harness.core.files import cache_root, content_key, write_text
from harness.results.run_folder import RunFolder
from harness.running.cluster.file_store import FileStore
from harness.running.fit_resources import reserved
from harness.running.fits.fit_maker import first_message
from harness.running.profile import Profile
from harness.running.run_settings import Settings, validate_settings
from harness.running.scheduling.scheduler import Event, Scheduler
from harness.running.scheduling.work_items import BackEnd, Node, WorkItem


@dataclass(frozen=True)
class ClusterOptions:
    """What the command line says about the cluster.

    Attributes:
        address: of the cluster; empty: as Ray finds it.
        measure_on: label of the nodes that measure; empty: any node.
        store: URL (fsspec) for data and fits; ``None``: all nodes see the folders of this machine.
        device: ``None``: a GPU if the nodes that measure have one.
    """

    address: str = ""
    measure_on: str = ""
    store: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class CheckedCluster:
    """Nodes that can do their part of a run, and the run's settings on them.

    Attributes:
        facts: node -> what it says about itself (:func:`harness.running.cluster.node_work.probe`).
        message: what every message says about the run.
        probe: request to which a node answers with facts about itself.
        timing: nodes that measure.
    """

    settings: Settings
    nodes: Sequence[Node]
    facts: Mapping[str, Mapping[str, Any]]
    message: Mapping[str, Any]
    probe: Mapping[str, Any]
    timing: frozenset[str]
    label: str

    def problem(self, node: Node, facts: Mapping[str, Any]) -> str:
        """Return what is wrong with a node that joins during the run; empty if nothing is."""
        known = next(iter(sorted(self.timing)))
        may_time = not self.label or self.label in node.kinds
        together = {known: self.facts[known], node.name: facts}
        timing = {known, node.name} if may_time else {known}
        return "; ".join([*facts["lacks"], *_differences(self.settings, together, timing, self.label)])


def run_message(settings: Settings, options: ClusterOptions, key: str) -> dict[str, Any]:
    """Return what nodes must know of a run; JSON. Data and folders that settings name go to the store, if there is one.

    Args:
        key: of the run in the store.
    """
    message = {**first_message(settings), "store": options.store, "key": key}
    if options.store is None:
        return {**message, "out": str(settings.out), "cache": str(cache_root().resolve()), "stored": []}
    facts, keys = to_store(settings, FileStore(options.store))
    facts["profile"]["fit_threads"] = message["profile"]["fit_threads"]
    return {**message, **facts, "out": None, "cache": None, "stored": keys}


def _with_folders(value: Any, change: Callable[[str], str]) -> Any:
    """Return settings with ``change`` applied to the path of every folder in them; names of other methods are none."""
    if isinstance(value, str) and value and os.path.isdir(os.path.expanduser(value)):
        return change(value)
    if not isinstance(value, dict):
        return value
    return {key: part if key in ("like", "needs") else _with_folders(part, change) for key, part in value.items()}


def moved(settings: Settings, change: Callable[[str], str]) -> Settings:
    """Return settings with ``change`` applied to the paths of folders of backbones and of settings of methods."""
    profile = settings.profile
    backbones, method = _with_folders(profile.backbones, change), _with_folders(profile.method, change)
    return replace(settings, profile=profile.model_copy(update={"backbones": backbones, "method": method}))


def with_full_paths(settings: Settings) -> tuple[Settings, list[str]]:
    """Return settings whose folders have full paths, since nodes work in other folders, and those that nodes read."""
    folders: list[str] = []

    def full(value: str) -> str:
        folders.append(str(Path(value).expanduser().resolve()))
        return folders[-1]

    data = None if settings.data is None else settings.data.expanduser().resolve()
    found = moved(replace(settings, data=data, out=settings.out.expanduser().resolve()), full)
    return found, list(dict.fromkeys([*folders, *([] if data is None else [str(data)])]))


def check_cluster(
    settings: Settings, options: ClusterOptions, back_end: BackEnd, key: str, check: Mapping[str, Any]
) -> CheckedCluster:
    """Check that every node can do its part; return the settings that they share: device and threads of a fit.

    Args:
        key: of the run in the store.
        check: files that a node must see (:func:`seen_files`).

    Raises:
        DeviceError: a GPU is asked for, and no node has one.
        ConfigError: a node lacks something, or differs from the others; one line per node.
    """
    settings, folders = with_full_paths(settings)
    nodes = [node for node in back_end.nodes() if node.cpus >= 1]
    if not nodes:
        raise ConfigError("the cluster has no node with a CPU: start one with 'ray start --address HOST:PORT'")
    timing = _timing_nodes(nodes, options.measure_on)
    device = options.device or ("cuda" if any(node.gpus >= 1 for node in timing) else "cpu")
    settings = replace(settings, device=device, profile=_with_threads(settings.profile, device, nodes))
    if device == "cuda":  # nodes without a GPU, as the head often is, take no part
        nodes, timing = [one for one in nodes if one.gpus > 0], [one for one in timing if one.gpus >= 1]
    _check_size(settings, nodes, timing)
    validate_settings(settings, elsewhere=True)
    message = run_message(settings, options, key)
    shared = [] if options.store is not None else folders
    request = {"work": "probe", "run": message, "check": {**check, "folders": [*check["folders"], *shared]}}
    facts = _probed(back_end, nodes, request)
    names = frozenset(node.name for node in timing)
    if problems := _differences(settings, facts, set(names), options.measure_on):
        raise SettingsError(*problems)
    return CheckedCluster(settings, nodes, facts, message, request, names, options.measure_on)


def _timing_nodes(nodes: Sequence[Node], label: str) -> list[Node]:
    found = [node for node in nodes if not label or label in node.kinds]
    if not found:
        labels = sorted({kind for node in nodes for kind in node.kinds})
        known = f"labels are {', '.join(labels)}" if labels else "no node has a label"
        raise ConfigError(
            f"--measure-on {label}: no node has this label ({known}): start a node with ray start --resources '{{\"{label}\": 1}}'"
        )
    return found


def _with_threads(profile: Profile, device: str, nodes: Sequence[Node]) -> Profile:
    """Return the profile with the threads of a fit fixed, which are part of its key."""
    if device != "cpu":
        return profile
    fewest = int(min(node.cpus for node in nodes))
    return profile.model_copy(update={"fit_threads": profile.fit_threads or max(1, fewest // profile.workers)})


def _check_size(settings: Settings, nodes: Sequence[Node], timing: Sequence[Node]) -> None:
    device = settings.device
    if device == "cuda" and not timing:
        raise DeviceError("--device cuda: no node that measures has a GPU: omit --device, or add such a node")
    profile = settings.profile
    most = max(node.cpus for node in nodes)
    for name in dict.fromkeys(profile.fits(profile.methods)):
        need = reserved(profile.resources, name, device, profile.fit_threads or 1)
        if need.cpus > most:
            raise ConfigError(f"a fit of {name} asks for {need.cpus:g} CPUs, and the largest node has {most:g}: ask for fewer "
                              f"(--fit-threads, or resources.{name}.cpus in the profile)")  # fmt: skip
        item = WorkItem(name, cpus=need.cpus, gpus=need.gpus, memory=need.memory)
        if not any(item.fits(node) for node in nodes):
            raise ConfigError(
                f"a fit of {name} asks for {need.cpus:g} CPUs, {need.gpus:g} GPUs and {need.memory / 2**30:.1f} GiB, which no "
                f"node has together: ask for less in the profile's table resources.{name}"
            )


@contextmanager
def seen_files(settings: Settings, options: ClusterOptions) -> Iterator[dict[str, Any]]:
    """Write files that a node must see if it sees the folders of this machine, or the store; delete them at the end."""
    name = f".seen-{secrets.token_hex(8)}"
    if options.store is not None:
        store = FileStore(options.store)
        store.write(name, b"seen")
        try:
            yield {"folders": [], "token": name}
        finally:
            store.remove(name)
        return
    places = [RunFolder.create(settings.out).path.resolve() / name, cache_root().resolve() / name]
    try:
        for place in places:
            write_text(place, "")
        yield {"folders": [*map(str, places)], "token": name}
    finally:
        for place in places:
            place.unlink(missing_ok=True)


def _probed(back_end: BackEnd, nodes: Sequence[Node], request: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Ask every node for its facts.

    Raises:
        SettingsError: nodes lack something; one line each.
    """
    facts: dict[str, Mapping[str, Any]] = {}
    problems: dict[str, str] = {}

    def tell(event: Event) -> None:
        if event.kind == "done":
            facts[event.item.key] = event.answer
            if lacks := event.answer["lacks"]:
                problems[event.item.key] = "; ".join(lacks)
        elif event.kind == "failed":
            problems[event.item.key] = event.reason.replace("\n", "; ")

    items = [WorkItem(node.name, kind=f"node:{node.name}", message=request) for node in nodes]
    Scheduler(_Named(back_end), tell, attempts=2).run(items)
    if problems:
        token = f"/{request['check']['token']}"
        lines = {name: text.replace(token, "") for name, text in sorted(problems.items())}
        raise SettingsError(*(f"node {name}: {text}" for name, text in lines.items()))
    return dict(sorted(facts.items()))


class _Named:
    """A back end each of whose nodes also has its own name as a label, so that a task can be meant for one node."""

    def __init__(self, inner: BackEnd) -> None:
        self._inner = inner
        self.start, self.wait, self.stop, self.now = inner.start, inner.wait, inner.stop, inner.now

    def nodes(self) -> Sequence[Node]:
        return [replace(node, kinds=node.kinds | {f"node:{node.name}"}) for node in self._inner.nodes()]


def _differences(settings: Settings, facts: Mapping[str, Mapping[str, Any]], timing: set[str], label: str) -> list[str]:
    """Return what would make fits depend on their node, or times on the one that measures; one line per node."""
    problems = []
    first, *others_of_it = facts
    for name in others_of_it:
        own, other = facts[name], facts[first]
        if own["code"] != other["code"]:
            problems.append(f"node {name}: has another version of geep-bench than node {first}: install the same one")
        versions = {"python": own["python"], **own["versions"]}
        others = {"python": other["python"], **other["versions"]}
        differing = [f"{key} {versions.get(key, 'none')} (not {others.get(key, 'none')})" for key in sorted({*versions, *others})
                     if versions.get(key) != others.get(key)]  # fmt: skip
        if differing:
            problems.append(
                f"node {name}: differs from node {first} in {', '.join(differing)}: install the same versions"
            )
        for what, option in (("precision", "training.precision"), ("compute", "--compute")):
            if own[what] != other[what]:
                problems.append(
                    f"node {name}: its {what} would be {own[what]} (on node {first} {other[what]}): choose one with {option}"
                )
        if settings.device == "cuda" and name in timing and own["device"] != "cuda":
            problems.append(f"node {name}: torch finds no GPU there: install a build of torch for CUDA")
    kinds = {name: _kind(facts[name]) for name in sorted(timing)}
    if len(set(kinds.values())) > 1:
        seen = dict[str, str]()
        for name, kind in kinds.items():
            seen.setdefault(kind, name)
        shown = "; ".join(f"{name}: {kind}" for kind, name in seen.items())
        what = f"nodes with the label {label}" if label else "nodes"
        problems.append(
            f"{what} are of several kinds, so that times would not be comparable ({shown}): name one kind with --measure-on"
        )
    return problems


def _kind(facts: Mapping[str, Any]) -> str:
    return f"{facts['cpu']}, {facts['cores']} cores" + (f", {facts['gpu']}" if facts["gpu"] else "")


def to_store(settings: Settings, store: FileStore) -> tuple[dict[str, Any], list[str]]:
    """Put the data and the folders that settings name into a store.

    Returns:
        The profile (JSON) and the folder of the data as sent to nodes, with ``store:KEY`` instead of folders; and the keys.
    """
    keys: list[str] = []

    def put(folder: str) -> str:
        keys.append(f"folders/{content_digest(Path(folder))}/{Path(folder).name}")
        store.put_folder(Path(folder), keys[-1])
        return f"store:{keys[-1]}"

    facts: dict[str, Any] = {"profile": moved(settings, put).profile.model_dump(mode="json"), "data": None}
    if settings.data is not None:
        places = {name: settings.data / name for name in settings.profile.datasets}
        root = f"data/{content_key({name: content_digest(place) for name, place in places.items()})}"
        for name, place in places.items():
            keys.append(f"{root}/{name}")
            store.put_folder(place, keys[-1])
        facts["data"] = f"store:{root}"
    return facts, keys
