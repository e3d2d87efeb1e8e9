"""The binding of a cell: everything that must be equal before it may be compared with another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.core.files import content_key
from harness.encoder import miniature
from harness.encoder.backbone import EMBEDDED
from harness.results.schema import Binding
from harness.running.fits.fit_keys import CHASSIS_VERSION, POINTS, without_paths
from harness.running.session import Session


def binding_of(session: Session, name: str, reference: str | None) -> Binding:
    """Return what must be equal in all cells that the cells of a method may be compared with.

    Args:
        reference: the method that its speed-ups refer to; ``None`` without one.
    """
    settings, prepared, backbone = session.settings, session.prepared, session.backbone
    profile = settings.profile
    names = profile.fits([name] if reference is None else [name, reference])
    common = profile.common(name)
    embedded = session.backbone_name == EMBEDDED
    return Binding(
        test_rows=prepared.test_rows,
        train_rows=prepared.train_rows,
        backbone="" if embedded else content_key(backbone.fingerprint, backbone.tokenizer_fingerprint),
        max_length=profile.max_length,
        training={key: json.dumps(without_paths(value)) for key, value in sorted(common.items())},
        own=sorted({*profile.config(name)} - {*common} - POINTS),
        fits={one: session.keys.recipe(one) for one in names},
        versions={
            **{one: f"{CHASSIS_VERSION}.{profile.version(one)}" for one in names},
            # The content is not hashed: its weights are pretrained here, and last digits may differ from machine to machine.
            **({"the embedded backbone": miniature.recipe_key()} if embedded else {}),
        },
        precision="/".join(sorted({settings.precision(one) for one in names})),
        fit_threads=settings.fit_threads,
        settings={one: session.keys.settings_alone(one) for one in names},
        points={one: _points(profile.config(one)) for one in profile.fits([name])},
    )


def _points(config: Mapping[str, Any]) -> str:
    """Return the settings of a fit that choose its operating points, as JSON text."""
    return json.dumps({key: without_paths(config[key]) for key in sorted(POINTS & {*config})})
