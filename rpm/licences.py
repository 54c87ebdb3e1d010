"""Print the distributions in a folder of wheels with their versions and licences, one a line."""

import sys
from importlib.metadata import distributions


def main() -> None:
    """Print them."""
    for found in sorted(distributions(path=[sys.argv[1]]), key=lambda d: d.metadata["Name"].lower()):
        data = found.metadata
        classifiers = [c.rpartition(" :: ")[2] for c in data.get_all("Classifier", []) if c.startswith("License :: ")]
        stated = data.get("License-Expression") or ", ".join(classifiers) or (data.get("License") or "").split("\n")[0]
        print(f"{data['Name']} {found.version}: {stated or 'see its own files'}")


if __name__ == "__main__":
    main()
