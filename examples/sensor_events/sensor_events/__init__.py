"""Events of a machine: what happens next, and when."""

from titans_seq.domain import Domain

DOMAIN = Domain(
    commands={"sensor-events": "sensor_events.cli:app"},
    models={"sensor_events": "sensor_events.model:EventModel"},
)
