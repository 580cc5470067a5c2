"""The messages of the corpus, by file. See README.md."""

import random


def message(msg_type, content=None, channel="iopub", **more):
    return {"channel": channel, "msg_type": msg_type, "content": content, **more}


def raw(msg_type, json, channel="iopub"):
    """A message whose content a JSON library would write differently."""
    return {"channel": channel, "msg_type": msg_type, "raw": json}


def out(text, name="stdout"):
    return message("stream", {"name": name, "text": text})


def err(text):
    return out(text, "stderr")


def outs(*texts):
    return [out(text) for text in texts]


def display(text, display_id=None, msg_type="display_data", metadata=None, **more):
    content = {"data": {"text/plain": text}, "metadata": metadata or {}}
    if display_id is not None:
        content["transient"] = {"display_id": display_id}
    return message(msg_type, content, **more)


def update(text, display_id=None, **more):
    return display(text, display_id, "update_display_data", **more)


def result(text, count=1, display_id=None, **more):
    reply = display(text, display_id, "execute_result", **more)
    reply["content"]["execution_count"] = count
    return reply


def error(ename="ValueError", evalue="no", traceback=("\x1b[31mTraceback\x1b[0m", "ValueError: no")):
    return message("error", {"ename": ename, "evalue": evalue, "traceback": list(traceback)})


def clear(wait=False):
    return message("clear_output", {"wait": wait})


def status(state):
    return message("status", {"execution_state": state})


def execute_input(count):
    return message("execute_input", {"code": "1", "execution_count": count})


def reply(count=1, **more):
    content = {"status": "ok", "execution_count": count, "user_expressions": {}, "payload": [], **more}
    return message("execute_reply", content, "shell")


def page(text, **more):
    return {"source": "page", "data": {"text/plain": text}, "start": 0, **more}


def ask(prompt="Name: ", password=False):
    return message("input_request", {"prompt": prompt, "password": password}, "stdin")


def answer(value):
    return message("input_reply", {"value": value, "status": "ok"}, "stdin")


OTHER = {"parent": "other"}

STREAMS = {
    "nothing": [],
    "one line": outs("hello\n"),
    "adjacent text of a stream is joined": outs("a", "b", "\n", "c"),
    "streams take turns": [out("1\n"), err("2\n"), out("3\n"), err("4\n")],
    "a stream of another name": [out("a", "log"), out("b", "log"), out("c")],
    "text that is empty": outs(""),
    "empty text between": [out("a"), err(""), out("b")],
    "text around an output of another kind": [out("a"), display("x"), out("b"), out("c")],
    "text around an error": [out("a"), error(), out("b")],
    "text in many scripts": outs("ä\n", "漢字", " العربية ", "🎉\n", "e\u0301"),
    "escapes and controls are text": outs("\x1b[1;32mgreen\x1b[0m\t\x07\x00\x0b\x0c\x7f\u2028", "\"\\/"),
    "an escape sequence in two messages": outs("\x1b[3", "1mred\x1b[0m"),
    "a name that is empty": [out("a", ""), out("b", "")],
    "a name that is empty, after text": [out("a"), out("b", ""), out("c", "")],
    "a name that is empty, after a display": [display("x"), out("lost", ""), out("a")],
    "text around idle": [out("a"), status("idle"), out("b")],
}

CURSOR = {
    "a return goes to the line's beginning": outs("abc\rx"),
    "a return at the end changes nothing": outs("abc\r"),
    "a return alone": outs("\r"),
    "what is written next replaces": outs("abc\r", "xy"),
    "longer text replaces all": outs("abc\rabcdef"),
    "a return and a newline": outs("a\r\nb\r\n"),
    "a return and a newline in two messages": outs("a\r", "\nb"),
    "returns and a newline": outs("a\r\r\n", "b"),
    "a newline in the middle goes to the end": outs("abc\rx\ny"),
    "a return stops at a newline": outs("a\nb\rc"),
    "a return stops at a newline of a message before": outs("a\n", "b", "\rc"),
    "a return at a line's beginning": outs("a\n\r", "\rb"),
    "a bar of progress": outs(*(f"\r{n:3}%|{'█' * (n // 10):10}| {n}/100" for n in range(0, 101, 20)), "\n"),
    "a bar of progress that ends its lines": outs(*(f"{n}%\r" for n in range(0, 101, 25)), "done\n"),
    "a bar of progress that is cleared": outs("\r 50%|#####     |", "\r" + " " * 17 + "\r", "done"),
    "a bar of progress on stderr, text on stdout": [
        err("\r 1%"), out("x\n"), err("\r 2%"), err("\r 3%"), out("y\n"), err("\r100%\n"),
    ],
    "a cursor does not outlive an output": [out("abc\r"), display("x"), out("y")],
    "an erased line is text": outs("50%\x1b[2K\r", "100%"),
    "a backspace takes the last": outs("abc\b", "d"),
    "a backspace at a beginning": outs("\b\ba\n\b\bb"),
    "a backspace in the middle takes two": outs("abcdef\rxy\b"),
    "a backspace in the middle, written on": outs("abcdef\rxy\bz"),
    "a backspace before the last": outs("abc\rxy\b\b", "z"),
    "a backspace after a return": outs("abc\r\bx"),
    "backspaces over all": outs("abc\b\b\b\b\bx"),
    "a spinner": outs("|", "\b/", "\b-", "\b\\", "\b \b", "done\n"),
    "backspaces and a newline": outs("abc\b\b\nd"),
    "an emoji is two wide": outs("😀\rab"),
    "half an emoji is replaced": outs("😀\ra"),
    "half an emoji is replaced, then the other": outs("😀\ra", "b"),
    "an emoji over text": outs("abc\r😀"),
    "an emoji over half an emoji": outs("a😀b\r😀"),
    "a backspace takes half an emoji": outs("😀\b"),
    "a backspace takes half an emoji, and another": outs("a😀\b", "\b", "c"),
    "a backspace in the middle joins halves": outs("😀😁\r😀\b"),
    "half an emoji is written on a finished line": outs("😀\b\n", "x"),
    "letters that are two characters": outs("e\u0301e\u0301\rx"),
    "wide letters": outs("漢字\rab"),
    "tabs are one wide": outs("\tab\rx"),
    "escape sequences have a width": outs("\x1b[31mred\x1b[0m\r\x1b[32mgo"),
    "a form feed and a vertical tab do not end a line": outs("a\x0bb\x0cc\rx"),
    "other line ends do not end a line": outs("a\u2028b\u0085c\rx"),
}

CLEARING = {
    "at once": [out("a"), clear(), out("b")],
    "at once, nothing after": [out("a"), clear()],
    "at once, nothing before": [clear(), out("a")],
    "waits": [out("a"), clear(True)],
    "waits for text": [out("a"), clear(True), out("b")],
    "waits for a display": [out("a"), clear(True), display("b")],
    "waits for a result": [out("a"), clear(True), result("b")],
    "waits for an error": [out("a"), clear(True), error()],
    "status does not end the wait": [out("a"), clear(True), status("idle")],
    "waits twice": [out("a"), clear(True), clear(True), out("b"), out("c")],
    "waits, then at once": [out("a"), clear(True), clear()],
    "waits, then at once, then text": [out("a"), clear(True), clear(), out("b"), out("c")],
    "waits where there is nothing": [clear(True), out("a"), out("b")],
    "waits for text of the same stream, which is not joined": [out("a\r"), clear(True), out("b")],
    "an animation": [m for n in range(5) for m in (clear(True), display(f"frame {n}"))],
    "an animation of text": [m for n in range(5) for m in (out(f"{n}\n"), clear(True))],
    "a cursor is cleared": [out("abc\r"), clear(), out("x")],
    "waits for a page": [out("a"), clear(True), reply(payload=[page("help")])],
}

DISPLAYS = {
    "one": [display("a")],
    "two of the same": [display("a"), display("a")],
    "several representations": [
        message("display_data", {
            "data": {"text/plain": "<x>", "text/html": "<b>x</b>", "application/json": {"a": [1, 2.5, None, True]},
                     "image/png": "iVBORw0KGgo=", "text/latex": ["a\n", "b"]},
            "metadata": {"image/png": {"width": 10}, "isolated": True},
        })
    ],
    "no representation": [message("display_data", {"data": {}, "metadata": {}})],
    "with an id": [display("a", "x")],
    "an id that is empty": [display("a", ""), update("b", "")],
    "an id that is null": [message("display_data", {
        "data": {"text/plain": "a"}, "metadata": {}, "transient": {"display_id": None}})],
    "transient is null": [message("display_data", {"data": {"text/plain": "a"}, "metadata": {}, "transient": None})],
    "updated": [display("a", "x"), update("b", "x"), out("c")],
    "updated with other metadata": [
        display("a", "x", metadata={"a": 1}), message("update_display_data", {
            "data": {"text/html": "b"}, "metadata": {"b": 2}, "transient": {"display_id": "x"}})],
    "updated many times": [display("0", "x")] + [update(str(n), "x") for n in range(1, 10)],
    "an update of an id that no display has": [update("b", "x"), out("c")],
    "an update before": [update("b", "x"), display("a", "x")],
    "an update without an id": [display("a", "x"), update("b")],
    "an update of another": [display("a", "x"), display("b", "y"), update("c", "y")],
    "the same id twice": [display("a", "x"), display("b", "x")],
    "the same id twice, updated": [display("a", "x"), out("-"), display("b", "x"), update("c", "x")],
    "an update between text": [display("a", "x"), out("1"), update("b", "x"), out("2")],
    "an update while clearing waits": [display("a", "x"), clear(True), update("b", "x")],
    "an update while clearing waits, then text": [display("a", "x"), clear(True), update("b", "x"), out("c")],
    "an update of what was cleared": [display("a", "x"), clear(), update("b", "x"), display("c", "y")],
    "an update of what was cleared and displayed again": [
        display("a", "x"), clear(), out("t"), display("b", "x"), update("c", "x")],
    "the same id again while clearing waits": [display("a", "x"), clear(True), display("b", "x"), update("c", "x")],
    "a result has an id, and is not updated": [result("a", display_id="x"), update("b", "x")],
    "a result updates displays of its id": [display("a", "x"), result("b", display_id="x")],
    "a result updates, then is not updated": [
        display("a", "x"), result("b", display_id="x"), update("c", "x"), display("d", "x")],
    "updated from another cell": [display("a", "x"), update("b", "x", **OTHER)],
    "displayed in another cell": [display("a", "x"), display("b", "x", **OTHER), out("c", ), update("d", "x")],
    "displayed in another cell before": [display("a", "x", **OTHER), display("b", "x"), update("c", "x", **OTHER)],
    "a result of another cell": [display("a", "x"), result("b", display_id="x", **OTHER)],
    "what other cells put out": [out("a"), message("stream", {"name": "stdout", "text": "b"}, **OTHER), out("c")],
    "updated after idle": [display("a", "x"), reply(), status("idle"), update("b", "x"), out("late")],
}

RESULTS = {
    "a result": [status("busy"), execute_input(3), result("4", 3), reply(3), status("idle")],
    "a result after text": [out("a"), result("4")],
    "two results": [result("1"), result("2", 2)],
    "a result with a count of zero": [result("1", 0)],
    "an error": [error()],
    "an error without a traceback": [error(traceback=[])],
    "an error with a long traceback": [error(traceback=[f"line {n}\n" for n in range(50)])],
    "an error in many scripts": [error("Fehlér", "ä 🎉", ["→ \x1b[0;31m漢\x1b[0m"])],
    "an error between text of a stream": [out("a"), error(), out("b"), error()],
    "only a count": [execute_input(7)],
    "an aborted reply": [message("execute_reply", {"status": "aborted"}, "shell")],
    "a page": [reply(payload=[page("help")])],
    "pages": [reply(payload=[{"source": "set_next_input", "text": "x"}, page("first"), page("second")])],
    "a page of a failed reply": [
        message("execute_reply", {"status": "error", "payload": [page("help")]}, "shell")],
    "a page between": [out("a"), reply(payload=[page("help")]), out("b"), status("idle")],
    "late output": [reply(), status("idle"), out("a"), display("b"), result("c"), error()],
    "types that are no output": [
        out("a"), message("comm_open", {"comm_id": "1", "target_name": "t", "data": {}}),
        message("debug_event", {}), message("what_is_this", {"data": {}}), out("b")],
}

INPUT = {
    "a question": [out("a\n"), ask()],
    "a question, answered": [out("a\n"), ask(), answer("Bob"), out("Hello Bob\n")],
    "two questions": [ask("1?"), answer("a"), ask("2?"), answer("b")],
    "a question with text between": [ask("1?"), answer("a"), out("-"), ask("2?"), answer("b")],
    "a second question is open": [ask("1?"), answer("a"), ask("2?")],
    "a secret": [ask("Password: ", True), answer("hunter2"), out("ok")],
    "an empty answer": [ask(), answer("")],
    "an empty prompt": [ask(""), answer("x")],
    "text while a question is open": [ask(), out("meanwhile\n"), answer("x"), out("after\n")],
    "idle while a question is open": [ask(), error("KeyboardInterrupt", "", []), status("idle")],
    "an unsolicited answer": [out("a"), answer("x"), out("b")],
    "a question while clearing waits": [out("a"), clear(True), ask(), answer("x"), out("b")],
    "an answer is joined to the one before, and to no text": [out("a"), ask("?"), answer("x"), ask("?"), answer("y")],
    "a prompt with a return": [ask("abc\rx"), answer("y")],
}

INVALID = {
    "text that is a list": [message("stream", {"name": "stdout", "text": ["a", "b"]}), out("c")],
    "text that is null": [message("stream", {"name": "stdout", "text": None}), out("c")],
    "text that is missing": [message("stream", {"name": "stdout"}), out("c")],
    "a name that is missing": [message("stream", {"text": "a"}), out("c")],
    "a name that is a number": [message("stream", {"name": 1, "text": "a"}), out("c")],
    "fields beyond the protocol's": [message("stream", {"name": "stdout", "text": "a", "extra": {"b": 1}}), out("b")],
    "data that is missing": [message("display_data", {"metadata": {}}), out("c")],
    "metadata that is missing": [message("display_data", {"data": {"text/plain": "a"}}), out("c")],
    "data that is null": [message("display_data", {"data": None, "metadata": None}), out("c")],
    "data that is a number": [message("display_data", {"data": 1, "metadata": 2}), out("c")],
    "a result without a count": [message("execute_result", {"data": {}, "metadata": {}}), out("c")],
    "a result whose count is null": [result("a", None), out("c")],
    "a result whose count is text": [result("a", "1"), out("c")],
    "a traceback that is missing": [message("error", {"ename": "a", "evalue": "b"}), out("c")],
    "a traceback that is text": [message("error", {"ename": "a", "evalue": "b", "traceback": "c"}), out("c")],
    "a traceback that is null": [message("error", {"ename": "a", "evalue": "b", "traceback": None}), out("c")],
    "a name of an error that is null": [message("error", {"ename": None, "evalue": "b", "traceback": []}), out("c")],
    "invalid text between text of a stream": [out("a"), message("stream", {"name": "stdout", "text": 1}), out("b")],
    "an invalid error between text of a stream": [
        out("a"), message("error", {"ename": "a", "evalue": "b", "traceback": "c"}), out("b")],
    "wait is missing": [out("a"), message("clear_output", {}), out("b")],
    "wait is a number": [out("a"), message("clear_output", {"wait": 1}), out("b")],
    "invalid output while clearing waits": [out("a"), clear(True), message("stream", {"name": "stdout"})],
    "an invalid update": [
        display("a", "x"), message("update_display_data", {"transient": {"display_id": "x"}, "data": {}}), out("c")],
    "content that is a list": [message("stream", []), message("display_data", []), out("c")],
    "content that is null": [message("stream", None), message("error", None), out("c")],
    "content that is text": [message("stream", "stdout"), out("c")],
    "a payload that is no list": [reply(payload="page"), reply(payload={"source": "page"}), out("c")],
    "a payload of nothing": [reply(payload=[None]), reply(payload=[1, page("x")]), out("c")],
    "output on the wrong channel": [message("stream", {"name": "stdout", "text": "a"}, "shell"), out("c")],
    "half an emoji": [raw("stream", r'{"name":"stdout","text":"a\ud83db"}'), out("c")],
    "half an emoji, and its other half": [
        raw("stream", r'{"name":"stdout","text":"\ud83d"}'), raw("stream", r'{"name":"stdout","text":"\ude00"}')],
    "half an emoji, written over": [
        raw("stream", r'{"name":"stdout","text":"ab\ude00\r\ud83d"}'), out("xyz")],
    "half an emoji in an error": [raw("error", r'{"ename":"\ud83d","evalue":"\ude00x","traceback":["\ud83d\ude00"]}')],
    "half an emoji in a display": [raw("display_data", r'{"data":{"text/plain":"a\ud83d"},"metadata":{}}')],
    "escapes": [raw("stream", r'{"name":"std\u006fut","text":"\u0061\n\t\"\\\/\b\u00e9\ud83d\ude00"}')],
    "blanks and order": [raw("stream", ' {\n"text" : "a" , "name":\t"stdout"\r\n} '), out("b")],
    "deep": [raw("display_data", '{"data":{"application/json":' + "[" * 100 + "]" * 100 + '},"metadata":{}}')],
}


def random_text(seed):
    """Text with many cursor movements, split into messages of two streams."""
    chance = random.Random(seed)
    letters = ["a", "b", "cd", "é", "漢", "😀", "😁", "\r", "\r", "\b", "\b", "\n", "\r\n", " ", "\x1b[1m"]
    messages = []
    for _ in range(chance.randint(2, 12)):
        text = "".join(chance.choice(letters) for _ in range(chance.randint(0, 12)))
        messages.append(out(text, chance.choice(["stdout"] * 6 + ["stderr"])))
    return messages


def random_messages(seed):
    """Random messages in any order."""
    chance = random.Random(seed)
    messages = []
    asked = False
    for number in range(chance.randint(5, 25)):
        name = chance.choice(["x", "y", None])
        text = f"{number}" + chance.choice(["", "\n", "\r", "\b", "😀\r"])
        other = chance.choice([OTHER] + [{}] * 4)
        kind = chance.randint(0, 11)
        if kind < 4:
            messages.append(out(text, chance.choice(["stdout", "stdout", "stderr"])))
        elif kind < 6:
            messages.append(display(text, name, **other))
        elif kind < 8:
            messages.append(update(text, name or "x", **other))
        elif kind == 8:
            messages.append(result(text, number, name, **other))
        elif kind == 9:
            messages.append(error(text, text, [text]))
        elif kind == 10:
            messages.append(clear(chance.random() < 0.7))
        else:
            messages.append(answer(text.replace("\b", "").strip()) if asked else ask(text))
            asked = not asked
    return messages


FILES = {
    "streams": STREAMS,
    "cursor": CURSOR,
    "clearing": CLEARING,
    "displays": DISPLAYS,
    "results": RESULTS,
    "input": INPUT,
    "invalid": INVALID,
    "random_text": {f"seed {seed}": random_text(seed) for seed in range(60)},
    "random_messages": {f"seed {seed}": random_messages(seed) for seed in range(60)},
}
