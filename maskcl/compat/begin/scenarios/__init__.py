"""BeGin's loaders, such as ``maskcl.compat.begin.scenarios.nodes.NCScenarioLoader``."""
