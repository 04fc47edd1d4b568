"""The leaderboard's address in MLflow: what its view shows, and the description of the experiment."""

import json
from collections.abc import Callable
from typing import Any

from evosearch.tracking.client import connect, find_runs, mirrored_in
from evosearch.tracking.mlflow import MlflowMirror
from evosearch.tracking.view import View, leaderboard_path

NewStore = Callable[[str], str]
Story = Any  # conftest.Story
LONG_S = 400.0


def view_of(story: Story) -> View:
    return View(story.search_id, "night")


def test_the_view_shows_candidates_flat_and_best_first(story: Story, new_store: NewStore) -> None:
    story.all()
    uri = new_store("store")
    announced: list[str] = []
    made = MlflowMirror(uri, "nights", story.url, story.search_id, "night", announce=announced.append)
    made.close(LONG_S)
    client = connect(uri)
    experiment = client.get_experiment_by_name("nights")
    assert announced == [made.leaderboard] == [leaderboard_path(experiment.experiment_id, story.search_id)]
    key = made.leaderboard.partition("viewStateShareKey=")[2].partition("&")[0]
    state = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert state["orderByKey"] == "metrics.`score/search`"
    assert state["orderByAsc"] is False
    columns = [name.partition("`")[2].rstrip("`") for name in state["selectedColumns"]]
    assert columns[:3] == ["score/search", "score/validation", "score/test"]
    assert {"task/copy/acc/search", "seconds/total", "role", "state", "method"} <= set(columns)

    # MLflow's own search, with the view's filter and order, is what the page shows
    order = ["metrics.`score/search` DESC"]
    rows = client.search_runs([experiment.experiment_id], state["searchFilter"], order_by=order)
    shown = [row.data.tags["candidate_id"] for row in rows]
    assert shown[:4] == ["2", "4", "0", "base"]
    assert set(shown[4:]) == {"1", "3", "champion"}, "a failure, a duplicate and a test score alone come last"
    assert rows[0].data.tags["role"] == "champion"
    known = set().union(*(row.data.metrics.keys() | row.data.tags.keys() for row in rows))
    assert set(columns) <= known, "every column has values"
    assert mirrored_in(uri, "nights", "night") == (experiment.experiment_id, story.search_id)
    assert mirrored_in(uri, "nights", "other") is None
    assert mirrored_in(uri, "of a stage", "night") == (experiment.experiment_id, story.search_id)


def test_the_experiment_says_what_is_searched_and_what_came_out(story: Story, new_store: NewStore) -> None:
    story.begin()
    uri = new_store("store")

    def note() -> str:
        MlflowMirror(uri, "nights", story.url, story.search_id, "night").close(LONG_S)
        return str(connect(uri).get_experiment_by_name("nights").tags["mlflow.note.content"])

    assert "The search runs." in note()
    story.first_group()
    story.second_group()
    story.finish()
    text = note()
    assert "**#2 is promoted.** 2 beats every comparator." in text
    assert "search for the best `linear` merge of `zoo:tiny/base`" in text
    experiment = connect(uri).get_experiment_by_name("nights").experiment_id
    own = find_runs(connect(uri), [experiment], "tags.kind = 'search'")[0].info.run_id
    assert f"(#/experiments/{experiment}/runs/{own}/model-metrics?workflowType=machine_learning)" in text
    assert leaderboard_path(experiment, story.search_id) in text


def test_a_search_without_right_answers_is_sorted_by_fitness(story: Story) -> None:
    view = view_of(story)
    tasks = {"copy": {"metric": "acc,none"}}
    assert view.scored({"split": "search", "score": None, "tasks": tasks})
    assert not view.scored({"split": "search", "score": None, "tasks": tasks}), "the columns are known"
    state = json.loads(view.tags()[f"mlflow.sharedViewState.{story.search_id[:16]}"])
    assert state["orderByKey"] == "metrics.`fitness/search`"
    assert "metrics.`task/copy/acc/search`" in state["selectedColumns"]


def test_models_in_folders_are_called_by_their_labels(story: Story) -> None:
    view = view_of(story)
    models = {"/home/me/models/base": "1", "/home/me/models/math+/data/lora": "2", "org/name@1": "3"}
    view.started({"spec": {}, "inputs": models, "suite": {}})
    assert "merge of `base`, `lora`, `org/name@1`." in view.tags()["mlflow.note.content"]


def test_names_of_a_spec_are_no_markdown(story: Story) -> None:
    view = view_of(story)
    view.started({"spec": {}, "inputs": {"a`](http://evil) **b**": "x"}, "suite": {"name": "s", "tasks": []}})
    assert "`a](http://evil) **b**`" in view.tags()["mlflow.note.content"]
