"""A loop of one's own, steered: digits are told apart, from a learning rate 100 times too small."""

import torch
from sklearn.datasets import load_digits

from trimtab import TorchController

torch.manual_seed(0)
images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
images, order = images.float() / 16, torch.randperm(len(images))
train, held_out = order[:1400], order[1400:]
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
loss_fn = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)


def validate():
    """Return the loss and the accuracy on images that are not trained on."""
    with torch.no_grad():
        logits = model(images[held_out])
    right = (logits.argmax(1) == digits[held_out]).float().mean()
    return {"loss": loss_fn(logits, digits[held_out]).item(), "accuracy": right.item()}


with TorchController(optimizer, total_steps=400, validate=validate, model=model) as controller:
    for _ in range(400):
        batch = train[torch.randint(len(train), (32,))]
        loss = loss_fn(model(images[batch]), digits[batch])
        loss.backward()
        controller.step(loss)  # instead of optimizer.step(), zero_grad() and scheduler.step()

summary = controller.summary
for decision in summary.decisions:
    print(f"step {decision.step:4}  lr {decision.used['lr']:.2e}  {decision.why()}")
print(f"best: loss {summary.best['loss']:.3f}, accuracy {summary.best['accuracy']:.3f}")
