"""Asks a server by the openai client: chat and completions, whole and streamed, and what is refused.

usage: openai_client.py URL
"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Write one sentence about the sea."}]
settings = {"model": model, "max_tokens": 24, "temperature": 0}
streamed = {"stream": True, "stream_options": {"include_usage": True}}


def same(what, whole, pieces, usage):
    assert whole and "".join(pieces) == whole, (what, whole, pieces)
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24, (what, usage)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, (what, usage)
    print(f"{what}: {len(pieces)} pieces, {usage.completion_tokens} tokens, {whole!r}")


answer = client.chat.completions.create(messages=messages, **settings)
chunks = list(client.chat.completions.create(messages=messages, **settings, **streamed))
texts = [choice.delta.content for chunk in chunks for choice in chunk.choices]
usage = [chunk.usage for chunk in chunks if chunk.usage]
assert usage == [usage[0]] and usage[0].completion_tokens == answer.usage.completion_tokens
same("chat", answer.choices[0].message.content, [text for text in texts if text], usage[0])

answer = client.completions.create(prompt="The sea is", **settings)
chunks = list(client.completions.create(prompt="The sea is", **settings, **streamed))
texts = [choice.text for chunk in chunks for choice in chunk.choices]
usage = [chunk.usage for chunk in chunks if chunk.usage]
same("completions", answer.choices[0].text, [text for text in texts if text], usage[0])

try:
    client.chat.completions.create(messages=messages, **{**settings, "model": "nobody"})
except openai.NotFoundError as error:
    print(f"an unknown model: {error.status_code}")
else:
    sys.exit("an unknown model was served")
try:
    client.chat.completions.create(messages=messages, **{**settings, "temperature": -1})
except openai.BadRequestError as error:
    print(f"a negative temperature: {error.status_code}")
else:
    sys.exit("a negative temperature was taken")
