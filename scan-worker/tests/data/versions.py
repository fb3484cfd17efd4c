"""An engine whose database, the words of a file, may change: each process has the one that it began with, or was told to load."""
import json
import sys
import time


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def load():
    with open(sys.argv[1]) as file:
        return file.read().split()


words = load()
say({"version": "1", "database_version": " ".join(words)})
while line := sys.stdin.buffer.readline():
    request = json.loads(line)
    content = sys.stdin.buffer.read(request["size"]).decode()
    told = {}
    if content == "slow":
        time.sleep(1)
    if content == "load":
        words = load()
        told = {"database_version": " ".join(words), "database_time_ms": 7}
    found = [word for word in words if word in content]
    say({"id": request["id"], "result": "infected" if found else "clean", "threat": " ".join(found), **told})
    if content == "end":
        sys.exit(0)
