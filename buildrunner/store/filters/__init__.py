"""The `filter` of list calls: parsed, checked against fields, matched."""
