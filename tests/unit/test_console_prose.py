"""Our own sentences on the console's pages: commands as code, tasks as links, and foreign text in them as text."""

import uuid

from services.ops.console.rendering import prose


def test_commands_are_code_and_tasks_are_links() -> None:
    task = uuid.UUID(int=7)
    assert prose(f"sent by `darkroom dead apply 4`: tasks {task}, and 2 more") == (
        f'sent by <code>darkroom dead apply 4</code>: tasks <a class="id" href="/orders/{task}">{task}</a>, and 2 more'
    )


def test_foreign_text_in_a_sentence_stays_text() -> None:
    assert prose('`<b>` at "><script>\u202e') == "<code>&lt;b&gt;</code> at &#34;&gt;&lt;script&gt;\\u202e"
    assert prose("a ` alone") == "a ` alone"
