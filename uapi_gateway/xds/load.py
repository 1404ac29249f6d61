"""How busy each cluster is, as Envoy reports it (LRS). Kept for the autoscaler to come, and for metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClusterLoad:
    """One cluster in one reporting interval."""

    in_flight: int
    issued: int
    succeeded: int
    failed: int


@dataclass
class Load:
    """The latest report of each cluster. `at_s` is when it came, by the monotonic clock."""

    at_s: float = 0.0
    _clusters: dict[str, ClusterLoad] = field(default_factory=dict)

    def take(self, request: Any, now: float) -> None:
        """Takes in a LoadStatsRequest. A cluster that is not in it has had nothing to do."""
        self.at_s = now
        self._clusters = {
            stats.cluster_name: ClusterLoad(
                in_flight=sum(place.total_requests_in_progress for place in stats.upstream_locality_stats),
                issued=sum(place.total_issued_requests for place in stats.upstream_locality_stats),
                succeeded=sum(place.total_successful_requests for place in stats.upstream_locality_stats),
                failed=sum(place.total_error_requests for place in stats.upstream_locality_stats),
            )
            for stats in request.cluster_stats
        }

    def clusters(self) -> Mapping[str, ClusterLoad]:
        return self._clusters

    def in_flight(self, cluster: str) -> int:
        load = self._clusters.get(cluster)
        return load.in_flight if load else 0
