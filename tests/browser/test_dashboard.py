"""What a person does in the dashboard: submit, watch, read samples, chat, judge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from chatgrpo.clock import SystemClock
from chatgrpo.gateway.api_keys import Keyring
from chatgrpo.gateway.gateway import STATE_DB
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.key_format import read_pepper
from chatgrpo.gateway.roles import Role
from chatgrpo.gateway.shared_store import SharedStore
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.stores import open_store
from tests.fake_services import FakeChat, FakeJobs

HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "'\"><svg onload=window.hacked=1>",
    "</textarea><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
]


def episode(step: int, reply: str, reward: float) -> dict[str, Any]:
    return {
        "step": step,
        "group_id": "g",
        "generation": 0,
        "task": {"task_id": "t", "messages": [{"role": "user", "content": "2 + 2 ="}], "answer": "4"},
        "episode": {
            "messages": [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": reply}],
            "reward": reward,
            "breakdown": {"exact": reward},
            "truncated": False,
        },
    }


async def keep(page: Page, name: str) -> None:
    """A screenshot, where CHATGRPO_SCREENSHOTS names a folder for them."""
    if folder := os.environ.get("CHATGRPO_SCREENSHOTS"):
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


async def test_a_wrong_form_is_corrected_and_its_job_watched(page: Page, jobs: FakeJobs) -> None:
    heard: list[str | bytes] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda text: heard.append(text)))
    await page.goto("/")
    await page.get_by_role("link", name="New job").click()
    tries = page.get_by_label("Tries a task")
    await tries.fill("1")
    await page.get_by_role("button", name="Start training").click()
    await expect(page.locator("#field-num_generations-error")).to_have_text("should be greater than or equal to 2")
    await expect(tries).to_be_focused()
    await keep(page, "refused")
    await tries.fill("4")
    await page.get_by_text("Any other field").click()
    await page.locator("#more").fill('{"lora": {"r": 4}, "environment": {"size": 50}}')
    await page.get_by_role("button", name="Start training").click()
    await expect(page.get_by_role("heading", name="sums")).to_be_visible()
    sent = jobs.configs["job-0"]
    assert (sent["num_generations"], sent["lora"]["r"], sent["learning_rate"]) == (4, 4, 1e-5)
    assert (sent["environment"]["dataset"], sent["environment"]["size"]) == ("chain_sum", 50)

    reward = page.get_by_role("img", name="Reward")
    await expect(reward).to_have_accessible_name("Reward: The first step has not ended yet")
    jobs.put("job-0")
    jobs.steps = [{"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.5}]
    await expect(reward).to_have_accessible_name(
        "Line chart Reward: training goes from 0.25 at step 1 to 0.5 at step 2. Arrow keys read single steps."
    )
    jobs.steps.append({"step": 3, "reward": 0.75, "eval_reward": 0.7})
    jobs.views["job-0"] = jobs.views["job-0"] | {"metrics": {"reward": 0.75}}
    await expect(reward).to_have_accessible_name(
        "Line chart Reward: training goes from 0.25 at step 1 to 0.75 at step 3; "
        "held-out goes from 0.7 at step 3 to 0.7 at step 3. Arrow keys read single steps."
    )
    await reward.focus()
    await page.keyboard.press("End")
    await expect(page.get_by_text("step 3: training 0.75, held-out 0.7")).to_be_visible()
    await keep(page, "curves")
    assert any("job:job-0" in str(text) and "false" in str(text) for text in heard), heard


async def test_samples_stand_side_by_side(page: Page, jobs: FakeJobs) -> None:
    jobs.put("a", status="succeeded")
    jobs.episodes = [episode(1, "five", 0.0), episode(12, "four", 1.0)]
    await page.goto("/#/jobs/a/samples")
    untrained = page.get_by_role("region", name="Earlier episodes")
    trained = page.get_by_role("region", name="Later episodes")
    await expect(untrained.get_by_role("heading", level=2)).to_have_text("Untrained model")
    await expect(trained.get_by_role("heading", level=2)).to_have_text("After 11 updates")
    await expect(trained.get_by_text("1 episode, mean reward 1")).to_be_visible()
    await untrained.locator("summary").click()
    await expect(untrained.get_by_text("exact 0 · try 1 · wanted 4")).to_be_visible()
    await keep(page, "samples")


async def test_the_queue_says_why(page: Page, jobs: FakeJobs) -> None:
    jobs.put("a", status="queued")
    jobs.views["a"]["pending"] = {"position": 1, "reason": "2 of 2 CPUs are used", "unblocked_by": "job b ends"}
    await page.goto("/#/queue")
    await expect(page.get_by_role("row", name="1 sums")).to_contain_text("2 of 2 CPUs are used")
    await keep(page, "queue")


async def test_a_thumb_is_kept_with_the_conversation(
    page: Page, speaker: FakeChat, conversations: Conversations
) -> None:
    speaker.pieces = ("The answer ", "is 42.")
    await page.goto("/#/chat")
    await expect(page.get_by_label("Model", exact=True)).to_have_value("tiny")
    await page.get_by_label("Message").fill("What is 6 times 7?")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("article", name="Model says")).to_contain_text("The answer is 42.")
    await page.get_by_role("button", name="Good reply").click()
    await expect(page.get_by_text("kept", exact=True)).to_be_visible()
    await keep(page, "chat")
    kept = (await conversations.list(tenant="local")).conversations[0]
    opinions = await conversations.opinions(kept.id, tenant="local")
    assert [(v, o.score) for v, o in opinions.items()] == [(kept.version, 1.0)]


@pytest.mark.parametrize(
    "view", ["jobs", "jobs/a", "jobs/a/samples", "jobs/a/log", "jobs/a/history", "queue", "compare?jobs=a"]
)
async def test_hostile_text_stays_text(page: Page, jobs: FakeJobs, view: str) -> None:
    hostile = "".join(HOSTILE)
    jobs.put("a", status="queued")
    jobs.views["a"] |= {
        "experiment_name": hostile,
        "pending": {"position": 1, "reason": hostile, "unblocked_by": hostile},
        "config": {hostile: hostile},
    }
    jobs.log = hostile
    jobs.episodes = [episode(step, hostile, 1.0) for step in (1, 12)]
    await page.goto(f"/#/{view}")
    await expect(page.locator("main")).to_contain_text(HOSTILE[0])
    assert await page.evaluate(
        "[window.hacked, document.querySelectorAll('main img, main script, main iframe').length]"
    ) == [None, 0]


async def test_hostile_replies_stay_text(page: Page, speaker: FakeChat) -> None:
    speaker.pieces = tuple(HOSTILE)
    await page.goto("/#/chat")
    await page.get_by_label("Message").fill("".join(HOSTILE))
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("article", name="Model says")).to_contain_text("".join(HOSTILE))
    assert await page.evaluate(
        "[window.hacked, document.querySelectorAll('main img, main script, main iframe').length]"
    ) == [None, 0]


async def test_the_keyboard_reaches_the_content_first(page: Page) -> None:
    await page.goto("/")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    await expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


async def test_an_outage_is_said_and_forgotten(page: Page, jobs: FakeJobs) -> None:
    jobs.down = True
    jobs.put("a", status="queued")
    await page.goto("/#/system")
    await expect(page.get_by_role("row", name="jobs")).to_contain_text("unhealthy")
    await expect(page.get_by_role("list", name="Alerts")).to_contain_text("the job scheduler is restarting")
    jobs.down = False
    await expect(page.get_by_role("row", name="jobs")).not_to_contain_text("unhealthy")


async def test_an_admin_makes_a_key_and_reads_who_did_what(page: Page, url: str, home: Path) -> None:
    store = SharedStore(lambda: open_store(home / STATE_DB), clock=SystemClock())
    keyring = Keyring(store, pepper=read_pepper(home), clock=SystemClock())
    key = (await keyring.create(LOCAL, name="owner", role=Role.ADMIN)).key
    await page.goto("/#/admin")
    await page.get_by_label("Key", exact=True).fill(key)
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.get_by_role("row", name="owner")).to_contain_text("works")
    await page.get_by_label("Name").fill("<img src=x onerror=window.hacked=1>")
    await page.get_by_role("button", name="Make a key").click()
    await expect(page.locator("code")).to_contain_text("cgk_")
    await expect(page.get_by_role("row", name="<img")).to_contain_text("viewer")
    await page.goto("/#/jobs")
    await page.goto("/#/admin")
    await expect(page.get_by_role("row", name="key.create")).to_contain_text("201")
    assert await page.evaluate("window.hacked") is None
    await keep(page, "admin")
    await store.close()


async def test_what_is_advised_is_shown_in_light_and_dark(page: Page) -> None:
    await page.goto("/#/system")
    await expect(page.get_by_role("list", name="Advice")).to_contain_text("Chat replicas: 1 will do")
    await expect(page.get_by_role("row", name="Requests a second")).to_be_visible()
    for theme in ("light", "dark"):
        await page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        await keep(page, f"system-{theme}")


async def test_every_view_fits_a_phone(page: Page, jobs: FakeJobs) -> None:
    for name, status in (("a", "running"), ("b", "queued")):
        jobs.put(name, status=status)
        jobs.views[name]["experiment_name"] = "dialogues about refunds, LoRA r=16, beta 0.04, third seed"
    jobs.steps = [{"step": step, "reward": step / 10} for step in range(1, 9)]
    await page.set_viewport_size({"width": 390, "height": 800})
    for view in ("jobs", "jobs/a", "jobs/a/samples", "jobs/a/history", "queue", "compare?jobs=a,b", "new", "system"):
        await page.goto(f"/#/{view}")
        await expect(page.locator("main h1")).to_be_visible()
        await keep(page, f"phone-{view.partition('?')[0].replace('/', '-')}")
        assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
