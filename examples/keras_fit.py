"""Fine-tune a small Keras network on handwritten digits with one more callback in ``fit``.

``python examples/keras_fit.py``; choose a backend with ``KERAS_BACKEND=jax`` or ``torch``.
"""

import argparse

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from trimtab.adapters.keras import TrimtabCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--lr", type=float, default=1e-2, help="where the learning rate starts")
parser.add_argument("--epochs", type=int, default=5)
arguments = parser.parse_args()

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(x / 16.0, y, test_size=0.2, random_state=0)
x, x_val, y, y_val = train_test_split(x, y, test_size=0.25, random_state=0)

layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dropout(0.1)]
model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10)])
model.compile(
    optimizer=keras.optimizers.AdamW(arguments.lr, weight_decay=1e-2),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
steer = TrimtabCallback((x_val, y_val))  # the one line
model.fit(x, y, epochs=arguments.epochs, callbacks=[steer], verbose=0)

for decision in steer.summary.decisions:
    print(f"step {decision.step:4}  lr {decision.used['lr']:.2e}  {decision.why()}")
print(f"best {steer.summary.best}, rollbacks {steer.summary.rollbacks}")
print("test", model.evaluate(x_test, y_test, verbose=0, return_dict=True))
