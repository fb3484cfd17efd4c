"""An engine that does what the file says: crash, hang, chatter, lie, or answer."""
import json
import os
import signal
import subprocess
import sys
import time

out = sys.stdout


def say(text):
    out.write(text + "\n")
    out.flush()


starts = sys.argv[1]
with open(starts, "a") as count:
    count.write(".")
if len(sys.argv) > 2 and sys.argv[2] == "crash":
    sys.exit(3)
say(json.dumps({"version": "ill"}))
while line := sys.stdin.buffer.readline():
    request = json.loads(line)
    content = sys.stdin.buffer.read(request["size"]).decode(errors="replace")
    if content == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif content == "exit":
        sys.exit(0)
    elif content == "hang":
        # With a process of its own that hangs too, and holds the same output.
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)
    elif content == "chatter":
        while True:
            out.write("x" * 100000)
    elif content == "garbage":
        say("all is well")
    elif content == "lie":
        say(json.dumps({"id": request["id"] + 1, "result": "clean"}))
    elif content == "unknown":
        say(json.dumps({"id": request["id"], "result": "fine"}))
    elif content == "two":
        say(json.dumps({"id": request["id"], "result": "clean"}) + "\n" + json.dumps({"id": request["id"] + 1, "result": "clean"}))
    elif content == "failed":
        say(json.dumps({"id": request["id"], "result": "failed", "threat": "no licence"}))
    else:
        say(json.dumps({"id": request["id"], "result": "infected" if "bad" in content else "clean", "threat": "Bad\u0007 thing"}))
