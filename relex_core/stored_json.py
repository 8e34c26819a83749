"""Reading back the JSON files that relex writes."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from relex_core.errors import DataError, ObjectNotFound, WindowNotReady
from relex_core.storage import Store, join_uri, open_store, read_bytes, refuse_file

Model = TypeVar("Model", bound=BaseModel)

SPEC_SUFFIXES = (".yaml", ".yml", ".json")
SPEC_FOR_RUN = "RUN is the directory; SPEC belongs to collect, run, watch and gate"

SHOWN_FAULTS = 3
"""A file of many tensors may have the same fault in each."""


def load_stored(model: type[Model], run: str, key: str, *, absent: str, make: str, repair: str = "") -> Model:
    """A file of a run directory that has to be there.

    Args:
        absent: what it means that it is not: "nothing is fitted yet".
        make: the command that writes it.
        repair: what to do if it cannot be read; `make`, unless given.

    Raises:
        WindowNotReady: there is no such file.
        SpecError: `run` is a file itself.
        DataError: the file was changed by hand, or an incompatible version of relex wrote it.
    """
    found = read_stored(model, open_store(run), key, repair=repair or make)
    if found is None:
        refuse_file(run, "a run directory", SPEC_FOR_RUN if run.endswith(SPEC_SUFFIXES) else "give a folder")
        raise WindowNotReady(absent, where=join_uri(run, key), next_step=make)
    return found


def read_stored(model: type[Model], store: Store, key: str, *, repair: str) -> Model | None:
    """A file that may be there.

    Args:
        repair: what to do if it cannot be read.

    Raises:
        DataError: the file was changed by hand, or an incompatible version of relex wrote it.
    """
    try:
        return model.model_validate_json(read_bytes(store, key))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        raise DataError(
            f"the file is not what this version of relex writes: {_first_faults(error)}",
            where=join_uri(store.uri, key),
            next_step=repair,
        ) from None


def _first_faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    named = [": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"]))) for fault in faults]
    more = [f"and {len(named) - SHOWN_FAULTS} more"] if len(named) > SHOWN_FAULTS else []
    return "; ".join([*named[:SHOWN_FAULTS], *more])
