"""Every recorded exchange of samples/index.json, sent again to the simulator and compared with the recording."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.replays import INDEX, NOT_REPLAYED, REPLAYS, plainly, replays
from tests.conformance.simulated import (
    HERE,
    Simulated,
    assert_same,
    forty_resizes,
    replay,
    sample,
    solid,
)
from tests.conformance.socket_replays import without_the_node  # registers the sockets too
from tests.waiting import eventually


@pytest.mark.parametrize("name", sorted(set(INDEX) - set(NOT_REPLAYED)))
def test_the_simulator_answers_as_it_was_recorded(name: str, request: pytest.FixtureRequest) -> None:
    kind, check = REPLAYS[name]
    check(request.getfixturevalue(kind))


def test_every_sample_is_replayed_or_has_a_reason_not_to_be() -> None:
    assert set(REPLAYS) | set(NOT_REPLAYED) == set(INDEX)
    assert set(REPLAYS) & set(NOT_REPLAYED) == set()
    assert {path.name for path in (HERE / "samples").iterdir()} == {*INDEX, "index.json"}
    assert len(NOT_REPLAYED) <= 3
    assert all(len(reason) > 20 for reason in NOT_REPLAYED.values())


def test_the_comparison_sees_a_difference(modern: Simulated) -> None:
    for name, other in (("get_prompt_idle.json", "get_prompt_busy.json"), ("queue_empty.json", "history_unknown.json")):
        answer = replay(modern, name)
        with pytest.raises(AssertionError):
            assert_same(other, answer, modern)


plainly(
    "features.json",
    "get_prompt_idle.json",
    "history_bad_max_items_500.json",
    "history_unknown.json",
    "jobs_bad_status_400.json",
    "jobs_cancel_bad_ids.json",
    "jobs_cancel_unknown.json",
    "jobs_not_found_404.json",
    "object_info_EmptyImage.json",
    "object_info_SaveImage.json",
    "object_info_unknown.json",
    "prompt_accepted.json",
    "prompt_bad_json_500.json",
    "prompt_bad_number_500.json",
    "prompt_error_cycle.json",
    "prompt_error_dangling_link.json",
    "prompt_error_invalid_id.json",
    "prompt_error_missing_image.json",
    "prompt_error_no_class_type.json",
    "prompt_error_no_outputs.json",
    "prompt_error_no_prompt.json",
    "prompt_error_sdxl_missing_model.json",
    "prompt_error_type_mismatch.json",
    "prompt_error_unknown_node.json",
    "prompt_error_validation.json",
    "prompt_partly_valid_200.json",
    "queue_empty.json",
    "system_stats.json",
    "upload_bad_type_500.json",
    "upload_new.json",
    "upload_traversal_400.json",
    "view_dotdot_400.json",
    "view_missing_404.json",
    "view_traversal_403.json",
)
plainly(
    "legacy_api_jobs_absent.json",
    "legacy_features.json",
    "legacy_prompt_accepted.json",
    "legacy_prompt_error_no_class_type.json",
    "legacy_prompt_error_unknown_node.json",
    "legacy_prompt_null_id.json",
    "legacy_system_stats.json",
    on="legacy",
)


@replays("prompt_no_id.json")
def _(server: Simulated) -> None:
    answer = replay(server, "prompt_no_id.json")
    minted = answer.json()["prompt_id"]
    assert server.finished(minted)["prompt"][1] == minted
    assert_same("prompt_no_id.json", answer, server, lambda body: {**body, "prompt_id": len(body["prompt_id"])})


@replays("origin_mismatch_403.json")
def _(server: Simulated) -> None:
    answer = replay(server, "origin_mismatch_403.json", Origin="http://elsewhere.example")
    assert_same("origin_mismatch_403.json", answer, server)


@replays("object_info_LoadImage.json")
def _(server: Simulated) -> None:
    name = "object_info_LoadImage.json"
    for file_name in sample(name)["response"]["body"]["LoadImage"]["input"]["required"]["image"][0]:
        (server.directory / "input" / file_name).write_bytes(b"")
    assert_same(name, replay(server, name), server)


def run_row(server: Simulated, row: list[Any]) -> dict[str, Any]:
    """Run the prompt of a recorded row of /queue or /history, with its id and extra_data."""
    return server.run(row[2], row[1], **posted_with(row))


def posted_with(row: list[Any]) -> dict[str, Any]:
    extra = {name: value for name, value in row[3].items() if name not in ("client_id", "create_time")}
    more: dict[str, Any] = {"extra_data": extra} if extra else {}
    if "client_id" in row[3]:
        more["client_id"] = row[3]["client_id"]
    return more


def entry_of(name: str) -> dict[str, Any]:
    (entry,) = sample(name)["response"]["body"].values()
    return dict(entry)


@replays("history_success.json", "history_error.json", "history_multi_image.json")
@replays("legacy_history_success.json", on="legacy")
def _(server: Simulated) -> None:
    legacy = server.get("/api/jobs").status_code == 404
    names = ["history_success.json", "history_error.json", "history_multi_image.json"]
    for name in ["legacy_history_success.json"] if legacy else names:
        run_row(server, entry_of(name)["prompt"])
        assert_same(name, replay(server, name), server)


@replays("history_partly_valid.json")
def _(server: Simulated) -> None:
    server.run(solid(254, "orders/example-two/plain"))  # the recorded file is number 2
    row = entry_of("history_partly_valid.json")["prompt"]
    run_row(server, row)
    assert_same("history_partly_valid.json", replay(server, "history_partly_valid.json"), server)


@replays("history_cached.json")
def _(server: Simulated) -> None:
    row = entry_of("history_cached.json")["prompt"]
    server.run(row[2])
    files = server.output_files()
    run_row(server, row)
    assert_same("history_cached.json", replay(server, "history_cached.json"), server)
    assert server.output_files() == files


@replays("history_list_max_items.json")
def _(server: Simulated) -> None:
    server.run(solid())
    for entry in sample("history_list_max_items.json")["response"]["body"].values():
        run_row(server, entry["prompt"])
    answer = replay(server, "history_list_max_items.json")
    assert_same("history_list_max_items.json", answer, server)
    assert list(answer.json()) == list(sample("history_list_max_items.json")["response"]["body"])


INTERRUPTED = "507c4e75-6125-48ab-aee2-7bef76cc902a"


def interrupt_between_nodes(server: Simulated, prompt_id: str, **more: Any) -> None:
    server.submit(forty_resizes(), prompt_id, **more)
    server.wait_running(prompt_id)
    assert server.post("/interrupt", json={"prompt_id": prompt_id}).status_code == 200
    server.finished(prompt_id)


@replays("history_interrupted.json", "jobs_detail_cancelled.json")
def _(server: Simulated) -> None:
    interrupt_between_nodes(server, INTERRUPTED)
    for name in ("history_interrupted.json", "jobs_detail_cancelled.json"):
        assert_same(name, replay(server, name), server, without_the_node)


@replays("jobs_detail_completed.json")
def _(server: Simulated) -> None:
    run_row(server, entry_of("history_success.json")["prompt"])
    assert_same("jobs_detail_completed.json", replay(server, "jobs_detail_completed.json"), server)


@replays("jobs_detail_failed.json")
def _(server: Simulated) -> None:
    run_row(server, entry_of("history_error.json")["prompt"])
    assert_same("jobs_detail_failed.json", replay(server, "jobs_detail_failed.json"), server)


def queue_as_recorded(server: Simulated) -> None:
    """One prompt of 42 nodes running, one waiting, and one put in front of it."""
    server.busy(forty_resizes(side=4), INTERRUPTED)
    front, normal_row = sample("queue_running_and_pending.json")["response"]["body"]["queue_pending"]
    server.submit(normal_row[2], normal_row[1], **posted_with(normal_row))
    server.submit(front[2], front[1], front=True, **posted_with(front))


@replays(
    "queue_running_and_pending.json",
    "get_prompt_busy.json",
    "history_of_running.json",
    "jobs_detail_in_progress.json",
    "jobs_detail_pending.json",
    "jobs_list_active.json",
)
def _(server: Simulated) -> None:
    queue_as_recorded(server)
    for name in [name for name, (_, check) in REPLAYS.items() if check is REPLAYS["jobs_list_active.json"][1]]:
        assert_same(name, replay(server, name), server)


@replays("queue_delete.json")
def _(server: Simulated) -> None:
    queue_as_recorded(server)
    assert_same("queue_delete.json", replay(server, "queue_delete.json"), server)
    assert [row[1] for row in server.queue()[1]] == ["67178d25-43c0-4697-b437-34222c3473d6"]


@replays("jobs_cancel_pending.json")
def _(server: Simulated) -> None:
    queue_as_recorded(server)
    assert_same("jobs_cancel_pending.json", replay(server, "jobs_cancel_pending.json"), server)
    assert [row[1] for row in server.queue()[1]] == ["e7b25c82-3ae6-43d7-8ec3-6cefe7eef447"]


@replays("interrupt.json")
def _(server: Simulated) -> None:
    queue_as_recorded(server)
    assert_same("interrupt.json", replay(server, "interrupt.json"), server)
    assert server.finished(INTERRUPTED)["status"]["messages"][-1][0] == "execution_interrupted"


@replays("jobs_list_page.json")
def _(server: Simulated) -> None:
    server.run(solid())
    interrupt_between_nodes(server, INTERRUPTED)
    twice = sample("queue_same_id_twice.json")["response"]["body"]["queue_pending"][1]
    server.run(twice[2], twice[1], number=1000)

    def without_total(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "pagination": {**body["pagination"], "total": body["pagination"]["total"] > 2}}

    assert_same("jobs_list_page.json", replay(server, "jobs_list_page.json"), server, without_total)


@replays("jobs_list_poisoned_500.json")
def _(server: Simulated) -> None:
    poison = server.submit(solid(), extra_data={"extra_pnginfo": None})
    server.finished(poison)
    assert_same("jobs_list_poisoned_500.json", replay(server, "jobs_list_poisoned_500.json"), server)
    server.post("/history", json={"delete": [poison]})
    assert server.get("/api/jobs").status_code == 200


@replays("prompt_same_id_same_number_500.json", "queue_same_id_twice.json")
def _(server: Simulated) -> None:
    server.busy(forty_resizes(side=4), INTERRUPTED)
    first = sample("queue_same_id_twice.json")["response"]["body"]["queue_pending"][0]
    server.submit(first[2], first[1], number=1000)
    answer = replay(server, "prompt_same_id_same_number_500.json")
    assert_same("prompt_same_id_same_number_500.json", answer, server)
    assert_same("queue_same_id_twice.json", replay(server, "queue_same_id_twice.json"), server)


@replays("queue_worker_frozen.json", "get_prompt_worker_frozen.json")
def _(server: Simulated) -> None:
    recorded = sample("queue_worker_frozen.json")["response"]["body"]
    for row in (recorded["queue_running"][0], recorded["queue_pending"][0]):
        server.submit(row[2], row[1], **posted_with(row))
        eventually(lambda: not server.stats()["worker_alive"], within=5, what="worker dead", every=0.01)
    for name in ("queue_worker_frozen.json", "get_prompt_worker_frozen.json"):
        assert_same(name, replay(server, name), server)


@replays("legacy_queue.json", on="legacy")
def _(server: Simulated) -> None:
    recorded = sample("legacy_queue.json")["response"]["body"]
    server.busy(forty_resizes(side=4), recorded["queue_running"][0][1])
    (row,) = recorded["queue_pending"]
    server.submit(row[2], row[1], **posted_with(row))
    assert_same("legacy_queue.json", replay(server, "legacy_queue.json"), server)


@replays("prompt_too_large_413.json", on="small")
def _(server: Simulated) -> None:
    answer = server.post("/prompt", json={"prompt": solid(), "filler": "x" * 1_200_000})
    assert_same("prompt_too_large_413.json", answer, server)
    assert server.stats()["prompts_accepted"] == 0


@replays("upload_too_large_413.json", on="small")
def _(server: Simulated) -> None:
    answer = server.post("/upload/image", files={"image": ("photo.png", bytes(1_200_000))})
    assert_same("upload_too_large_413.json", answer, server)


@replays("upload_identical.json", "upload_name_taken.json", "upload_overwrite.json")
def _(server: Simulated) -> None:
    for name in ("upload_new.json", "upload_identical.json", "upload_name_taken.json", "upload_overwrite.json"):
        assert_same(name, replay(server, name), server)
    folder = server.directory / "input" / "orders" / "rec-29d206e8"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes == {"photo.png": 128, "photo (1).png": 128}


@replays("view_ok.json")
def _(server: Simulated) -> None:
    run_row(server, entry_of("history_success.json")["prompt"])
    answer = replay(server, "view_ok.json")
    recorded = sample("view_ok.json")["response"]
    assert answer.status_code == recorded["status"]
    assert answer.headers["Content-Type"] == recorded["content_type"]
    for name in set(recorded["headers"]) - {"Content-Length"}:
        assert answer.headers[name] == recorded["headers"][name]
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert answer.content.startswith(b"\x89PNG")
    assert answer.content.endswith(b"IEND\xaeB`\x82")
