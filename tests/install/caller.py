"""Call an address with a new connection each time until a file appears; print how it went. Runs inside the machine."""

import http.client
import json
import sys
import time
import urllib.parse
from pathlib import Path

url, stop = urllib.parse.urlsplit(sys.argv[1]), Path(sys.argv[2])
counts = {"served": 0, "refused": 0, "failed": 0}
while not stop.exists():
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
    try:
        connection.request("GET", url.path)
        connection.getresponse().read()
        counts["served"] += 1
    except ConnectionRefusedError:
        counts["refused"] += 1
    except (OSError, http.client.HTTPException):
        counts["failed"] += 1
    finally:
        connection.close()
    time.sleep(0.02)
print(json.dumps(counts))
