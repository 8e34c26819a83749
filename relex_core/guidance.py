"""What candidates take from the forecast: drift shares and the choices of `auto`, by module type. Needs no extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relex_core.forecast.names import HOLD, extrapolates
from relex_core.forecast.results import Forecast


@dataclass(frozen=True)
class Guidance:
    """The forecast, as far as the weights of candidates depend on it."""

    drift_shares: Mapping[str, float] = field(default_factory=dict)
    """φ by module type; 0 where nothing moved."""
    predictors: Mapping[str, str] = field(default_factory=dict)
    """What `auto` does, by module type; all the same unless choosing by module type was measured to be better."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Module type by tensor."""

    def drift_share(self, tensor: str) -> float:
        """φ of one tensor's module type."""
        return self.drift_shares[self.modules[tensor]]

    def predictor(self, tensor: str) -> str:
        """What `auto` does with one tensor."""
        return self.predictors[self.modules[tensor]]

    @property
    def stays(self) -> bool:
        """Whether `auto` is the same at every target step."""
        return not any(map(extrapolates, self.predictors.values()))

    @property
    def holds(self) -> bool:
        """Whether `auto` is the last observed checkpoint itself."""
        return set(self.predictors.values()) <= {HOLD}


def guidance_of(forecast: Forecast) -> Guidance:
    """What candidates take from a forecast."""
    auto = forecast.auto
    return Guidance(
        drift_shares={name: group.null.drift_share or 0.0 for name, group in forecast.modules.items()},
        predictors={name: auto.modules[name] if auto.by_module else auto.predictor for name in forecast.modules},
        modules={name: tensor.module for name, tensor in forecast.tensors.items()},
    )
