"""Predict sine waves with an LSTM."""

import sys

import numpy as np
import torch
import torch.nn as nn

np.random.seed(2)
torch.manual_seed(0)
T, L, N = 20, 60, 24
x = np.array(range(L)) + np.random.randint(-4 * T, 4 * T, N).reshape(N, 1)
data = torch.from_numpy(np.sin(x / 1.0 / T).astype("float32"))


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 16, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(16, 1)

    def forward(self, series):
        hidden, _ = self.lstm(series.unsqueeze(-1))
        return self.head(hidden).squeeze(-1)


model = Forecast()
criterion = nn.MSELoss()
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
for epoch in range(15):
    optimizer.zero_grad()
    loss = criterion(model(data[3:, :-1]), data[3:, 1:])
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.5)
    optimizer.step()
    if epoch % 5 == 0:
        with torch.no_grad():
            print(f"{epoch} loss {loss.item():.6f} test {criterion(model(data[:3, :-1]), data[:3, 1:]).item():.6f}")
torch.save(model.state_dict(), sys.argv[1])
