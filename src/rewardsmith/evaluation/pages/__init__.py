"""The report page: folders of results in, one self-contained HTML page out; no model is loaded."""
