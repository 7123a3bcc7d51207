"""Log lines on stdout."""

import json
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict

from runyard.client import LogLine


async def print_logs(lines: AsyncIterator[LogLine], *, as_json: bool) -> int:
    """As the task wrote them, on a terminal too: who reads a log wants its colours. JSON: an object a line.

    The number of lines. Bytes that were not UTF-8 are replacement characters by now.
    """
    count = 0
    async for line in lines:
        count += 1
        text = json.dumps(asdict(line), ensure_ascii=False) if as_json else line.text
        sys.stdout.buffer.write(text.encode(errors="replace") + b"\n")
        sys.stdout.buffer.flush()
    return count
