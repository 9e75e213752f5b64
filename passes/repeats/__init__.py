"""Parts of a graph that repeat: where they are cut. In doubt, the graph stays whole."""
