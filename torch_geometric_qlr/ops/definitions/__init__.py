"""What each op means; :mod:`torch_geometric_qlr.ops.definition` finds the files that are here."""
