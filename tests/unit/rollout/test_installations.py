"""Two installations with one registry do not change each other's deployments."""

import pytest
from typer.testing import CliRunner

from include import ledger
from include.cli import app, models
from include.ledger import identity
from include.registry import requests, versions
from include.registry.owner import OWNER, OtherInstallationError
from include.rollout import manual_rollback, promotion
from include.rollout.served import NotServedError, wait_until_served
from include.settings import get_settings
from tests.unit.rollout.test_promotion import CUTOFF


@pytest.fixture
def theirs(deployed, serving, registry):
    """Return a project whose model belongs to another installation. Its version 1 is champion."""
    registry.set_registered_model_tag(deployed.name, OWNER, "their-id")
    return deployed


def everything(registry, project):
    model = registry.get_registered_model(project.name)
    return (
        dict(model.tags),
        dict(model.aliases),
        [dict(v.tags) for v in registry.search_model_versions(f"name = '{project.name}'")],
    )


CHANGES = {
    "roll back": lambda project: manual_rollback.roll_back(project, to="3", reason="wrong shell", by="jo"),
    "promote": lambda project: promotion.promote(project, "2", dag_run="run", cutoff=CUTOFF, by_person=True),
    "train": lambda project: requests.judging_basis(project, {"id": "new"}, "/nowhere/set.parquet"),
    "alias": lambda project: versions.move_alias(project, "champion", "2"),
    "take the alias away": lambda project: versions.move_alias(project, "champion", None),
    "tag a version": lambda project: versions.tag_version(project, "1", "rollout", "{}"),
    "tag the model": lambda project: versions.tag_model(project, "rollout", "{}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_installations_model_is_not_changed(theirs, registry, change):
    before = everything(registry, theirs)
    with pytest.raises(
        OtherInstallationError,
        match=f"belongs to installation their-id, this one is {ledger.installation()}.*AIRLOOP_MLFLOW_PORT",
    ):
        CHANGES[change](theirs)
    assert everything(registry, theirs) == before


def test_a_command_says_so_and_adopting_it_helps(theirs, registry, monkeypatch):
    monkeypatch.setattr("include.projects.get_project", lambda _: theirs)
    monkeypatch.setattr(models, "mlflow_or_exit", lambda note="": None)
    refused = CliRunner().invoke(app, ["rollback", theirs.name, "--to", "3", "--reason", "wrong shell"])
    assert refused.exit_code == 2 and "nothing was changed" in refused.output
    adopted = CliRunner().invoke(app, ["adopt", theirs.name, "--reason", "our ledger was lost", "--by", "jo"])
    assert adopted.exit_code == 0 and "it was that of their-id" in adopted.output
    assert manual_rollback.roll_back(theirs, to="3", reason="now it is ours", by="jo").champion == "3"


def test_the_id_is_made_once_and_stays(store):
    mine = ledger.installation()
    assert ledger.installation() == mine and len(mine) == 36
    identity._known.clear()
    assert ledger.installation() == mine


def test_a_model_without_an_owner_is_anybodys(deployed, serving, registry):
    """A model without an owner, from an older version, belongs to any installation."""
    assert OWNER not in registry.get_registered_model(deployed.name).tags
    assert manual_rollback.roll_back(deployed, to="2", reason="it works", by="jo").champion == "2"


def test_with_the_ledger_away_the_way_back_is_open(theirs, monkeypatch, tmp_path):
    monkeypatch.setenv("AIRLOOP_LEDGER_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    get_settings.cache_clear()
    assert manual_rollback.roll_back(theirs, to="3", reason="all is away", by="jo").champion == "3"


def test_serving_that_follows_another_registry_is_not_believed(deployed, serving, monkeypatch):
    """The report of a serving that follows another registry is ignored.

    Its version has the same number as ours.
    """
    original = serving.says
    monkeypatch.setattr(serving, "says", lambda project: original(project) | {"installation": "their-id"})
    follows, words = manual_rollback.wait_for_served_version(deployed, "1", timeout_s=0)
    assert not follows and "follows the registry of installation their-id" in words
    with pytest.raises(NotServedError, match="their-id"):
        wait_until_served(get_settings().serving_url, deployed.name, "1", timeout_s=0, check=lambda: None)
    monkeypatch.setattr(serving, "says", lambda project: original(project) | {"installation": ledger.installation()})
    assert manual_rollback.wait_for_served_version(deployed, "1", timeout_s=0)[0]
