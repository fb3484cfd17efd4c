#!/usr/bin/env python3
"""A scan engine for Lazaret in a few lines: finds any of the given words in a file.

In a scan worker's configuration:

    engines:
      external:
        - name: Wordlist
          command: [python3, /opt/lazaret/wordlist.py, "confidential", "internal only"]

The protocol: the engine says what it is in one line of JSON. Then it gets, for each file, a line of JSON and exactly
`size` bytes, and answers in one line. See "Engines of your own" in README.md.
"""
import json
import sys


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def judge(content, words):
    for word in words:
        if word.encode() in content:
            return {"result": "suspicious", "threat": "Word." + word.replace(" ", "_")}
    return {"result": "clean"}


def main(words):
    say({"version": "1.0", "database_version": f"{len(words)} words"})
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        content = sys.stdin.buffer.read(request["size"])
        say({"id": request["id"], **judge(content, words)})


if __name__ == "__main__":
    main(sys.argv[1:])
