"""The view `sparsevit_trials`: one row per trial, for people's own tools. docs/results.md tells its columns.

Trials of before did not say their sparsity and the windows they keep: it is worked out for those there are.
"""

from __future__ import annotations

import json
from decimal import Decimal

import sqlalchemy as sa
from alembic import op

from sparsevit.sparsity import SparsitySpace

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    connection = op.get_bind()
    _describe_trials(connection)
    if connection.dialect.name in ("sqlite", "postgresql"):
        op.execute(sa.text(_view(postgres=connection.dialect.name == "postgresql")))


def downgrade() -> None:
    op.execute("DROP VIEW IF EXISTS sparsevit_trials")


def _describe_trials(connection: sa.Connection) -> None:
    studies = sa.text("SELECT study_id, value_json FROM study_user_attributes WHERE key = 'sparsevit'")
    outcomes = sa.text(
        "SELECT attributes.trial_id, attributes.value_json FROM trial_user_attributes AS attributes "
        "JOIN trials ON trials.trial_id = attributes.trial_id "
        "WHERE trials.study_id = :study AND attributes.key = 'sparsevit'"
    )
    levels = sa.text("SELECT param_name, param_value FROM trial_params WHERE trial_id = :trial")
    update = sa.text(
        "UPDATE trial_user_attributes SET value_json = :value WHERE trial_id = :trial AND key = 'sparsevit'"
    )
    insert = sa.text(
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, 'sparsity', :value)"
    )
    for study, text in connection.execute(studies).all():
        record = json.loads(text)
        space = SparsitySpace(tuple(record["depths"]), tuple(Decimal(value) for value in record["ratios"]))
        height, width = record["size"]
        for trial, outcome in connection.execute(outcomes, {"study": study}).all():
            level = {name: value for name, value in connection.execute(levels, {"trial": trial})}
            sparsity = space.decode([int(level[name]) for name in space.layer_names])
            kept = f"{height}x{width} keeps {','.join(map(str, sparsity.kept(record['windows'])))}"
            known = json.dumps(json.loads(outcome) | {"kept": kept})
            connection.execute(update, {"trial": trial, "value": known})
            connection.execute(insert, {"trial": trial, "value": json.dumps(str(sparsity))})


def _view(*, postgres: bool) -> str:
    """The view in the dialect of PostgreSQL or of SQLite, which differ in JSON, in time and in truth."""

    def field(column: str, name: str, kind: str = "text") -> str:
        """A field of the JSON object in a column of texts."""
        if not postgres:
            return f"json_extract({column}, '$.{name}')"
        return f"({column}::jsonb ->> '{name}')::{kind}"

    def scalar(column: str) -> str:
        """The text that a column holds as JSON."""
        return f"{column}::jsonb #>> '{{}}'" if postgres else f"json_extract({column}, '$')"

    json_type = "jsonb" if postgres else "text"
    any_of = "bool_or" if postgres else "max"
    # The metric itself, or the mean of those that its name joins with "+".
    confirmed, figure = (
        ("jsonb_each_text(confirmed.metrics::jsonb) AS one", "CAST(one.value AS double precision)")
        if postgres
        else ("json_each(confirmed.metrics) AS one", "one.value")
    )
    parts = "replace('+' || subjects.metric || '+', '+' || one.key || '+', '') <> '+' || subjects.metric || '+'"
    seconds = (
        "extract(epoch FROM trials.datetime_complete - trials.datetime_start)::double precision"
        if postgres
        else "round((julianday(trials.datetime_complete) - julianday(trials.datetime_start)) * 86400, 3)"
    )
    return f"""
    CREATE VIEW sparsevit_trials AS
    WITH subjects AS (
        SELECT
            record.study_id,
            {field("record.value_json", "target")} AS target,
            {field("record.value_json", "environment")} AS environment,
            {field("record.value_json", "backbone")} AS backbone,
            {field("record.value_json", "evaluator")} AS evaluator,
            {field("record.value_json", "metric")} AS metric,
            {field("record.value_json", "min_ms", "double precision")} AS min_ms,
            {field("record.value_json", "max_ms", "double precision")} AS max_ms,
            COALESCE({field("wishes.value_json", "confirm_images", "integer")}, 0) AS confirm_images
        FROM study_user_attributes AS record
        LEFT JOIN study_user_attributes AS wishes
            ON wishes.study_id = record.study_id AND wishes.key = 'sparsevit:wishes'
        WHERE record.key = 'sparsevit'
    ),
    constraints AS (
        SELECT trial_id, NOT {any_of}(CAST(value_json AS double precision) > 0) AS met
        FROM trial_system_attributes
        WHERE key LIKE 'constraints:%'
        GROUP BY trial_id
    ),
    outcomes AS (
        SELECT
            trial_id,
            CAST({field("value_json", "accuracy")} AS {json_type}) AS metrics,
            {field("value_json", "predicted_ms", "double precision")} AS predicted_ms,
            {field("value_json", "seconds", "double precision")} AS seconds,
            {field("value_json", "source")} AS source,
            {field("value_json", "kept")} AS kept
        FROM trial_user_attributes
        WHERE key = 'sparsevit'
    ),
    sparsities AS (
        SELECT trial_id, {scalar("value_json")} AS sparsity FROM trial_user_attributes WHERE key = 'sparsity'
    ),
    workers AS (
        SELECT trial_id, {scalar("value_json")} AS worker FROM trial_user_attributes WHERE key = 'worker'
    )
    SELECT
        studies.study_name AS study,
        trials.number AS trial,
        CAST(trials.state AS text) AS state,
        sparsities.sparsity,
        CAST('[' || replace(sparsities.sparsity, '/', ',') || ']' AS {json_type}) AS ratios,
        subjects.metric,
        accuracies.value AS accuracy,
        outcomes.metrics,
        CASE WHEN measured.kept IS NOT NULL THEN COALESCE(
            (SELECT {figure} FROM {confirmed} WHERE one.key = subjects.metric),
            (SELECT avg({figure}) FROM {confirmed} WHERE {parts})
        ) END AS confirmed_accuracy,
        CASE WHEN measured.kept IS NOT NULL THEN CAST(confirmed.metrics AS {json_type}) END AS confirmed_metrics,
        COALESCE(outcomes.predicted_ms, latencies.value) AS predicted_ms,
        measured.median_ms AS measured_ms,
        measured.low_ms AS measured_low_ms,
        measured.high_ms AS measured_high_ms,
        constraints.met AS feasible,
        subjects.min_ms,
        subjects.max_ms,
        subjects.target,
        trials.datetime_start AS started,
        trials.datetime_complete AS completed,
        {seconds} AS seconds,
        outcomes.seconds AS evaluation_seconds,
        outcomes.source,
        workers.worker
    FROM trials
    JOIN studies ON studies.study_id = trials.study_id
    JOIN subjects ON subjects.study_id = trials.study_id
    LEFT JOIN constraints ON constraints.trial_id = trials.trial_id
    LEFT JOIN outcomes ON outcomes.trial_id = trials.trial_id
    LEFT JOIN sparsities ON sparsities.trial_id = trials.trial_id
    LEFT JOIN workers ON workers.trial_id = trials.trial_id
    LEFT JOIN trial_values AS accuracies ON accuracies.trial_id = trials.trial_id AND accuracies.objective = 0
    LEFT JOIN trial_values AS latencies ON latencies.trial_id = trials.trial_id AND latencies.objective = 1
    LEFT JOIN sparsevit_latencies AS measured
        ON measured.target = subjects.target AND measured.environment = subjects.environment
        AND measured.backbone = subjects.backbone AND measured.kept = outcomes.kept
    LEFT JOIN sparsevit_accuracies AS confirmed
        ON confirmed.evaluator = subjects.evaluator AND confirmed.images = subjects.confirm_images
        AND confirmed.kept = outcomes.kept
    """
