"""The `filter` parameter of list calls: parsed, checked against fields, matched."""
