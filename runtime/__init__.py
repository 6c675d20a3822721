"""Run and evaluate models that skim-export wrote."""
