"""The tests. Folders below are those of the package; what several of them share is in `helpers`."""
