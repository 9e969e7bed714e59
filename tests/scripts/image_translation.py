"""Translate digits into their outlines with a conditional GAN: a U-Net and a discriminator of patches."""

import sys

import torch
import torch.nn as nn
from sklearn.datasets import load_digits

torch.manual_seed(4)
images = torch.tensor(load_digits().images[:96], dtype=torch.float32).unsqueeze(1) / 8 - 1
edges = (images - torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)).clamp(-1, 1)


class UNet(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.down1 = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.down2 = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.InstanceNorm2d(2 * width)
        )
        self.up2 = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.InstanceNorm2d(width)
        )
        self.up1 = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * width, 1, 4, stride=2, padding=1), nn.Tanh())

    def forward(self, x):
        first = self.down1(x)
        return self.up1(torch.cat([self.up2(self.down2(first)), first], dim=1))


class PatchDiscriminator(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(nn.Conv2d(2, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True), nn.Conv2d(width, 1, 3, padding=1))


def set_requires_grad(net, value):
    for p in net.parameters():
        p.requires_grad = value


G, D = UNet(), PatchDiscriminator()
opt_G = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.5, 0.999))
opt_D = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.999))
gan_loss, l1 = nn.BCEWithLogitsLoss(), nn.L1Loss()
for epoch in range(3):
    for real_A, real_B in zip(images.split(16), edges.split(16), strict=True):
        fake_B = G(real_A)
        set_requires_grad(D, True)
        opt_D.zero_grad()
        pred_fake = D(torch.cat([real_A, fake_B.detach()], 1))
        pred_real = D(torch.cat([real_A, real_B], 1))
        loss_D = (gan_loss(pred_fake, torch.zeros_like(pred_fake)) + gan_loss(pred_real, torch.ones_like(pred_real))) * 0.5
        loss_D.backward()
        opt_D.step()
        set_requires_grad(D, False)
        opt_G.zero_grad()
        pred_fake = D(torch.cat([real_A, fake_B], 1))
        loss_G = gan_loss(pred_fake, torch.ones_like(pred_fake)) + 100 * l1(fake_B, real_B)
        loss_G.backward()
        opt_G.step()
    print(f"epoch {epoch} D {loss_D.item():.4f} G {loss_G.item():.4f}")
torch.save({"G": G.state_dict(), "D": D.state_dict()}, sys.argv[1])
