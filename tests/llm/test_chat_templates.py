"""Chat templates of the kinds that released models have, rendered as transformers renders them.

The templates are ours. ``scripts/real_tokenizers.py`` compares released ones, which it downloads.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest
from jinja2 import TemplateError

from etcuda.errors import GenerationError
from etcuda.llm.tokenizer import Tokenizer
from tests.llm.conftest import train_tokenizer

# Headers around any role, and a prompt at the end whether it is asked for or not.
HEADERS = """\
{% for message in messages %}{% set text = '<|' + message['role'] + '|>
' + message['content'] | trim + '<|end|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}\
{{ text }}{% endfor %}{{ '<|assistant|>
' }}"""
# Looks for tools, which are none, and for what a message may hold beside its content.
TOOLS = """\
{%- if tools %}
    {{- '<|system|>' + (tools | map('tojson') | join(',')) + '<|end|>' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|system|>\\n' + messages[0].content + '<|end|>\\n' }}
{%- endif %}
{%- set found = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and found.last < 0 %}{% set found.last = messages | length - loop.index %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {%- if message.thoughts is defined and loop.index0 > found.last %}
            {{- '<|assistant|>(' + message.thoughts.strip() + ')' }}
        {%- else %}
            {{- '<|' + message.role + '|>' }}
        {%- endif %}
        {{- message.content.split(')')[-1].lstrip('\\n') + '<|end|>\\n' }}
    {%- elif message.tool_calls %}
        {%- for call in message.tool_calls %}{{ '<|assistant|>' + call.name + (call.arguments | tojson) }}{% endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% if thinking is defined %}{{ '(' }}{% endif %}{% endif %}
"""
# No system role of its own, roles that must alternate, and content in parts.
TURNS = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first, turns = messages[0]['content'] + '\\n', messages[1:] -%}
{%- else -%}
    {%- set first, turns = '', messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {{ '<|' + message['role'] + '|>' + (first if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for part in message['content'] -%}{{ part['text'] | trim if part['type'] == 'text' }}{%- endfor -%}
    {%- endif -%}
    {{ '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
TEMPLATES = {"headers": HEADERS, "tools": TOOLS, "turns": TURNS}
SYSTEM, ASK = {"role": "system", "content": "Answer in verse."}, {"role": "user", "content": " And 'thee' & <me>?\n"}
ANSWER = {"role": "assistant", "content": "(hm)\nThou art more lovely."}
CALL = {"name": "weather", "arguments": {"where": "Köln & <Bonn>"}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [ASK],
    "system": [SYSTEM, ASK],
    "turns": [SYSTEM, ASK, ANSWER, ASK],
    "two users": [ASK, ASK],
    "system last": [ASK, SYSTEM],
    "unknown role": [{"role": "critic", "content": "Hm."}],
    "thoughts": [ASK, ANSWER | {"thoughts": " it is\n"}],
    "calls": [ASK, ANSWER | {"tool_calls": [CALL, CALL]}],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}]}],
}
REFUSED = {("turns", "two users"), ("turns", "unknown role"), ("tools", "parts")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("plain")
    train_tokenizer(made)
    return made


@pytest.fixture(params=sorted(TEMPLATES))
def folder(request: pytest.FixtureRequest, plain: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATES[request.param]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "name").write_text(request.param)
    return tmp_path


def test_conversations_are_rendered_as_transformers_does(folder: pathlib.Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours, template = AutoTokenizer.from_pretrained(folder), Tokenizer(folder), (folder / "name").read_text()
    refused = set()
    for name, messages in CONVERSATIONS.items():
        for end in (True, False):
            try:
                expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=end)
            except (TemplateError, TypeError):
                refused.add((template, name))
                with pytest.raises(GenerationError, match=r"chat: expected messages that the chat template takes"):
                    ours.render(messages, end)
                continue
            assert ours.render(messages, end) == expected, name
    assert refused == {pair for pair in REFUSED if pair[0] == template}


def test_what_the_template_refuses_is_said(folder: pathlib.Path) -> None:
    if (folder / "name").read_text() == "turns":
        with pytest.raises(GenerationError, match=r"got roles user, user: roles must alternate"):
            Tokenizer(folder).render([ASK, ASK])
