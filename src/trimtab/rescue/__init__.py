"""What saves a run from its accidents: signals, treatments and events, whatever the framework.

`trimtab.rescue.engine.RescueEngine` judges each optimiser step by its loss and the norm of its
gradients, and says what is done. A healthy step is never changed.
"""
