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
    "no messages": [],
    "one line": outs("hello\n"),
    "adjacent text of a stream is joined": outs("a", "b", "\n", "c"),
    "streams take turns": [out("1\n"), err("2\n"), out("3\n"), err("4\n")],
    "a stream with another name": [out("a", "log"), out("b", "log"), out("c")],
    "empty text": outs(""),
    "empty text on another stream in between": [out("a"), err(""), out("b")],
    "text before and after an output of another kind": [out("a"), display("x"), out("b"), out("c")],
    "text before and after an error": [out("a"), error(), out("b")],
    "text in many writing systems": outs("ä\n", "漢字", " العربية ", "🎉\n", "e\u0301"),
    "escapes and controls are text": outs("\x1b[1;32mgreen\x1b[0m\t\x07\x00\x0b\x0c\x7f\u2028", "\"\\/"),
    "an escape sequence in two messages": outs("\x1b[3", "1mred\x1b[0m"),
    "an empty stream name": [out("a", ""), out("b", "")],
    "an empty stream name after text": [out("a"), out("b", ""), out("c", "")],
    "an empty stream name after a display": [display("x"), out("lost", ""), out("a")],
    "text before and after an idle status": [out("a"), status("idle"), out("b")],
}

CURSOR = {
    "a carriage return moves to the line's beginning": outs("abc\rx"),
    "a carriage return at the end changes nothing": outs("abc\r"),
    "only a carriage return": outs("\r"),
    "text after a carriage return overwrites": outs("abc\r", "xy"),
    "longer text overwrites the whole line": outs("abc\rabcdef"),
    "a carriage return and a newline": outs("a\r\nb\r\n"),
    "a carriage return and a newline in two messages": outs("a\r", "\nb"),
    "carriage returns and a newline": outs("a\r\r\n", "b"),
    "a newline in the middle ends the line after its last character": outs("abc\rx\ny"),
    "a carriage return does not cross a newline": outs("a\nb\rc"),
    "a carriage return does not cross a newline of an earlier message": outs("a\n", "b", "\rc"),
    "a carriage return at a line's beginning": outs("a\n\r", "\rb"),
    "a progress bar": outs(*(f"\r{n:3}%|{'█' * (n // 10):10}| {n}/100" for n in range(0, 101, 20)), "\n"),
    "a progress bar that ends with a carriage return": outs(*(f"{n}%\r" for n in range(0, 101, 25)), "done\n"),
    "a progress bar that is cleared": outs("\r 50%|#####     |", "\r" + " " * 17 + "\r", "done"),
    "a progress bar on stderr, text on stdout": [
        err("\r 1%"), out("x\n"), err("\r 2%"), err("\r 3%"), out("y\n"), err("\r100%\n"),
    ],
    "the cursor of an output does not affect later outputs": [out("abc\r"), display("x"), out("y")],
    "an escape sequence that erases a line is text": outs("50%\x1b[2K\r", "100%"),
    "a backspace removes the last character": outs("abc\b", "d"),
    "backspaces at a line's beginning": outs("\b\ba\n\b\bb"),
    "a backspace in the middle removes two characters": outs("abcdef\rxy\b"),
    "text after a backspace in the middle": outs("abcdef\rxy\bz"),
    "text after two backspaces in the middle": outs("abc\rxy\b\b", "z"),
    "a backspace after a carriage return": outs("abc\r\bx"),
    "more backspaces than characters": outs("abc\b\b\b\b\bx"),
    "a spinner": outs("|", "\b/", "\b-", "\b\\", "\b \b", "done\n"),
    "backspaces and a newline": outs("abc\b\b\nd"),
    "an emoji is two units wide": outs("😀\rab"),
    "half an emoji is overwritten": outs("😀\ra"),
    "half an emoji is overwritten, then the other half": outs("😀\ra", "b"),
    "an emoji over text": outs("abc\r😀"),
    "an emoji over half an emoji": outs("a😀b\r😀"),
    "a backspace removes half an emoji": outs("😀\b"),
    "two backspaces remove an emoji": outs("a😀\b", "\b", "c"),
    "a backspace in the middle joins halves of two emoji": outs("😀😁\r😀\b"),
    "half an emoji on a finished line": outs("😀\b\n", "x"),
    "letters of two characters each": outs("e\u0301e\u0301\rx"),
    "wide letters": outs("漢字\rab"),
    "tabs are one unit wide": outs("\tab\rx"),
    "escape sequences have a width": outs("\x1b[31mred\x1b[0m\r\x1b[32mgo"),
    "a form feed and a vertical tab do not end a line": outs("a\x0bb\x0cc\rx"),
    "other line ends do not end a line": outs("a\u2028b\u0085c\rx"),
}

CLEARING = {
    "clear at once": [out("a"), clear(), out("b")],
    "clear at once, nothing after it": [out("a"), clear()],
    "clear at once, nothing before it": [clear(), out("a")],
    "a clear that waits stays pending": [out("a"), clear(True)],
    "a clear that waits for text": [out("a"), clear(True), out("b")],
    "a clear that waits for a display": [out("a"), clear(True), display("b")],
    "a clear that waits for a result": [out("a"), clear(True), result("b")],
    "a clear that waits for an error": [out("a"), clear(True), error()],
    "a status does not end the wait": [out("a"), clear(True), status("idle")],
    "two clears that wait": [out("a"), clear(True), clear(True), out("b"), out("c")],
    "a clear that waits, then one at once": [out("a"), clear(True), clear()],
    "a clear that waits, then one at once, then text": [out("a"), clear(True), clear(), out("b"), out("c")],
    "a clear that waits without earlier output": [clear(True), out("a"), out("b")],
    "a clear that waits for text of the same stream, which is not joined": [out("a\r"), clear(True), out("b")],
    "an animation": [m for n in range(5) for m in (clear(True), display(f"frame {n}"))],
    "an animation of text": [m for n in range(5) for m in (out(f"{n}\n"), clear(True))],
    "a clear resets the cursor": [out("abc\r"), clear(), out("x")],
    "a clear that waits for a page": [out("a"), clear(True), reply(payload=[page("help")])],
}

DISPLAYS = {
    "one display": [display("a")],
    "two equal displays": [display("a"), display("a")],
    "a display with several representations": [
        message("display_data", {
            "data": {"text/plain": "<x>", "text/html": "<b>x</b>", "application/json": {"a": [1, 2.5, None, True]},
                     "image/png": "iVBORw0KGgo=", "text/latex": ["a\n", "b"]},
            "metadata": {"image/png": {"width": 10}, "isolated": True},
        })
    ],
    "a display without a representation": [message("display_data", {"data": {}, "metadata": {}})],
    "a display with an id": [display("a", "x")],
    "an empty id": [display("a", ""), update("b", "")],
    "a null id": [message("display_data", {
        "data": {"text/plain": "a"}, "metadata": {}, "transient": {"display_id": None}})],
    "a null transient": [message("display_data", {"data": {"text/plain": "a"}, "metadata": {}, "transient": None})],
    "a display is updated": [display("a", "x"), update("b", "x"), out("c")],
    "a display is updated with other metadata": [
        display("a", "x", metadata={"a": 1}), message("update_display_data", {
            "data": {"text/html": "b"}, "metadata": {"b": 2}, "transient": {"display_id": "x"}})],
    "a display is updated many times": [display("0", "x")] + [update(str(n), "x") for n in range(1, 10)],
    "an update of an id that no display has": [update("b", "x"), out("c")],
    "an update before the display": [update("b", "x"), display("a", "x")],
    "an update without an id": [display("a", "x"), update("b")],
    "an update of another display": [display("a", "x"), display("b", "y"), update("c", "y")],
    "two displays with the same id": [display("a", "x"), display("b", "x")],
    "two displays with the same id are updated": [display("a", "x"), out("-"), display("b", "x"), update("c", "x")],
    "an update between text": [display("a", "x"), out("1"), update("b", "x"), out("2")],
    "an update while a clear is pending": [display("a", "x"), clear(True), update("b", "x")],
    "an update while a clear is pending, then text": [display("a", "x"), clear(True), update("b", "x"), out("c")],
    "an update of a cleared display": [display("a", "x"), clear(), update("b", "x"), display("c", "y")],
    "an update of a display that was cleared and shown again": [
        display("a", "x"), clear(), out("t"), display("b", "x"), update("c", "x")],
    "the same id again while a clear is pending": [display("a", "x"), clear(True), display("b", "x"), update("c", "x")],
    "a result with an id is not updated": [result("a", display_id="x"), update("b", "x")],
    "a result updates displays with its id": [display("a", "x"), result("b", display_id="x")],
    "a result updates a display and is not updated later": [
        display("a", "x"), result("b", display_id="x"), update("c", "x"), display("d", "x")],
    "a display is updated by another cell": [display("a", "x"), update("b", "x", **OTHER)],
    "a display with the same id in another cell": [
        display("a", "x"), display("b", "x", **OTHER), out("c", ), update("d", "x")],
    "a display with the same id in another cell, before": [
        display("a", "x", **OTHER), display("b", "x"), update("c", "x", **OTHER)],
    "a result of another cell with the same id": [display("a", "x"), result("b", display_id="x", **OTHER)],
    "output of another cell in between": [
        out("a"), message("stream", {"name": "stdout", "text": "b"}, **OTHER), out("c")],
    "a display is updated after the idle status": [
        display("a", "x"), reply(), status("idle"), update("b", "x"), out("late")],
}

RESULTS = {
    "a result": [status("busy"), execute_input(3), result("4", 3), reply(3), status("idle")],
    "a result after text": [out("a"), result("4")],
    "two results": [result("1"), result("2", 2)],
    "a result with a count of zero": [result("1", 0)],
    "an error": [error()],
    "an error without a traceback": [error(traceback=[])],
    "an error with a long traceback": [error(traceback=[f"line {n}\n" for n in range(50)])],
    "an error in many writing systems": [error("Fehlér", "ä 🎉", ["→ \x1b[0;31m漢\x1b[0m"])],
    "an error between text of a stream": [out("a"), error(), out("b"), error()],
    "only an execution count": [execute_input(7)],
    "an aborted reply": [message("execute_reply", {"status": "aborted"}, "shell")],
    "a page": [reply(payload=[page("help")])],
    "pages": [reply(payload=[{"source": "set_next_input", "text": "x"}, page("first"), page("second")])],
    "a page of a failed reply": [
        message("execute_reply", {"status": "error", "payload": [page("help")]}, "shell")],
    "a page between texts": [out("a"), reply(payload=[page("help")]), out("b"), status("idle")],
    "output after the idle status": [reply(), status("idle"), out("a"), display("b"), result("c"), error()],
    "message types that are not outputs": [
        out("a"), message("comm_open", {"comm_id": "1", "target_name": "t", "data": {}}),
        message("debug_event", {}), message("what_is_this", {"data": {}}), out("b")],
}

INPUT = {
    "a question": [out("a\n"), ask()],
    "a question, answered": [out("a\n"), ask(), answer("Bob"), out("Hello Bob\n")],
    "two questions": [ask("1?"), answer("a"), ask("2?"), answer("b")],
    "a question with text between": [ask("1?"), answer("a"), out("-"), ask("2?"), answer("b")],
    "a second question is open": [ask("1?"), answer("a"), ask("2?")],
    "a password": [ask("Password: ", True), answer("hunter2"), out("ok")],
    "an empty answer": [ask(), answer("")],
    "an empty prompt": [ask(""), answer("x")],
    "text while a question is open": [ask(), out("meanwhile\n"), answer("x"), out("after\n")],
    "an idle status while a question is open": [ask(), error("KeyboardInterrupt", "", []), status("idle")],
    "an unsolicited answer": [out("a"), answer("x"), out("b")],
    "a question while a clear is pending": [out("a"), clear(True), ask(), answer("x"), out("b")],
    "an answer is joined to the previous answer, but not to text": [
        out("a"), ask("?"), answer("x"), ask("?"), answer("y")],
    "a prompt with a carriage return": [ask("abc\rx"), answer("y")],
}

INVALID = {
    "text that is a list": [message("stream", {"name": "stdout", "text": ["a", "b"]}), out("c")],
    "text that is null": [message("stream", {"name": "stdout", "text": None}), out("c")],
    "text that is missing": [message("stream", {"name": "stdout"}), out("c")],
    "a name that is missing": [message("stream", {"text": "a"}), out("c")],
    "a name that is a number": [message("stream", {"name": 1, "text": "a"}), out("c")],
    "unknown fields": [message("stream", {"name": "stdout", "text": "a", "extra": {"b": 1}}), out("b")],
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
    "an error name that is null": [message("error", {"ename": None, "evalue": "b", "traceback": []}), out("c")],
    "invalid text between text of a stream": [out("a"), message("stream", {"name": "stdout", "text": 1}), out("b")],
    "an invalid error between text of a stream": [
        out("a"), message("error", {"ename": "a", "evalue": "b", "traceback": "c"}), out("b")],
    "wait is missing": [out("a"), message("clear_output", {}), out("b")],
    "wait is a number": [out("a"), message("clear_output", {"wait": 1}), out("b")],
    "invalid output while a clear is pending": [out("a"), clear(True), message("stream", {"name": "stdout"})],
    "an invalid update": [
        display("a", "x"), message("update_display_data", {"transient": {"display_id": "x"}, "data": {}}), out("c")],
    "content that is a list": [message("stream", []), message("display_data", []), out("c")],
    "content that is null": [message("stream", None), message("error", None), out("c")],
    "content that is text": [message("stream", "stdout"), out("c")],
    "a payload that is not a list": [reply(payload="page"), reply(payload={"source": "page"}), out("c")],
    "a payload with invalid items": [reply(payload=[None]), reply(payload=[1, page("x")]), out("c")],
    "output on the wrong channel": [message("stream", {"name": "stdout", "text": "a"}, "shell"), out("c")],
    "half an emoji": [raw("stream", r'{"name":"stdout","text":"a\ud83db"}'), out("c")],
    "half an emoji, and its other half": [
        raw("stream", r'{"name":"stdout","text":"\ud83d"}'), raw("stream", r'{"name":"stdout","text":"\ude00"}')],
    "half an emoji, overwritten": [
        raw("stream", r'{"name":"stdout","text":"ab\ude00\r\ud83d"}'), out("xyz")],
    "half an emoji in an error": [raw("error", r'{"ename":"\ud83d","evalue":"\ude00x","traceback":["\ud83d\ude00"]}')],
    "half an emoji in a display": [raw("display_data", r'{"data":{"text/plain":"a\ud83d"},"metadata":{}}')],
    "escapes": [raw("stream", r'{"name":"std\u006fut","text":"\u0061\n\t\"\\\/\b\u00e9\ud83d\ude00"}')],
    "blanks, and fields in another order": [raw("stream", ' {\n"text" : "a" , "name":\t"stdout"\r\n} '), out("b")],
    "deeply nested data": [
        raw("display_data", '{"data":{"application/json":' + "[" * 100 + "]" * 100 + '},"metadata":{}}')],
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
    """Random messages of all types."""
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
