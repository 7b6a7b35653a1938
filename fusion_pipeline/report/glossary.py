"""The words of the page, explained where a reader rests on them."""

import re

from markupsafe import Markup, escape

GLOSSARY = {
    "reference": "The image that stays where it is. All others are brought onto its voxels.",
    "moving": "An image that the registration moves onto the reference.",
    "initial alignment": "Where the image headers place the images, before anything is moved.",
    "registered": "Brought onto the reference's voxels; the values are the original ones.",
    "OK": "No reason to doubt this registration. Look at the images all the same.",
    "CHECK": "The registration is doubtful: the line below the heading says why.",
    "estimated remaining error": "Distance by which the registration is probably off, averaged "
    "over the body. An estimate from the images, not a measurement.",
    "estimated error": "Distance by which the registration is probably off, at each point. An "
    "estimate from the images, not a measurement.",
    "true error": "Distance between the registration and the known truth, at each point.",
    "known truth": "The correct alignment, known because the images were made or marked with it.",
    "probability of an error over 5 mm": "How likely the registration is off by more than 5 mm on "
    "average over the body. Estimated from the images by a model that was fitted to few cases.",
    "initial transform": "A transform that was given with the images. The registration tries it "
    "beside the headers, and goes by the images.",
    "landmarks": "Marked points: the reference's, and the same points of the other images where "
    "the registration brings them.",
    "moved by": "Distance that the body's points move, from the initial alignment.",
    "folded voxels": "Share of voxels where the deformation turns tissue inside out; should be 0.",
    "normalized mutual information": "How well one image's values predict the other's: 1 not at "
    "all, 2 fully. A similarity across modalities; more is better.",
    "MIND-SSC distance": "Difference of the local structure of both images: 0 is equal. A distance "
    "across modalities; less is better.",
    "overlap": "Share of the reference's body that the moving image covers.",
    "target registration error": "Distance between where a point was brought and where it belongs.",
    "distance of landmarks": "Distance between marked points and where they belong.",
    "Dice of labels": "Agreement of outlined structures: 0 disjoint, 1 equal.",
    "95 % Hausdorff distance of labels": "95 of 100 points of one outline lie closer than this to "
    "the other.",
    "displacement": "How far, and where to, each point of the reference is moved to find the same "
    "tissue in the moving image.",
    "volume change": "Jacobian determinant: how much room the tissue takes in the moving image, by "
    "what it takes in the reference. Red more, blue less.",
    "checkerboard": "Tiles of both images in turn. Borders should run on from tile to tile.",
    "outlines": "Edges of the reference, drawn on the moving image. They should lie on its edges.",
    "overlay": "One image in colour over the other.",
    "harmonization": "Bringing the values of all images to one scale, 0 to 1, without noise and "
    "shading.",
    "harmonized": "On the scale 0 to 1 that all images share; the edges stay.",
    "fused": "One grey image made of all: at each point the images weighted by what they show.",
    "weight": "Share of an image in the fused one, at each point. The weights sum to 1.",
    "sources by colour": "Which image each point of the fused image comes from.",
    "window": "The values that are shown black and white; all between are grey.",
    "SUV": "Standardized uptake value: activity by injected dose and body weight. 1 is even "
    "distribution.",
    "HU": "Hounsfield units of CT: water 0, air −1000.",
    "bias field": "Slow shading of an MR image that comes from the coil, not from the tissue.",
}

_BY_FOLDED = {term.casefold(): text for term, text in GLOSSARY.items()}
_TERM = re.compile(
    rf"(?<!\w)({'|'.join(re.escape(t) for t in sorted(GLOSSARY, key=len, reverse=True))})(?!\w)",
    re.IGNORECASE,
)


def explained(text: str) -> Markup:
    """The text with its first word of the glossary explained on hover and on touch.

    >>> print(explained("1 < Dice"))
    1 &lt; Dice
    >>> print(explained("Folded voxels")[:34])
    <dfn tabindex="0" data-means="Shar
    """
    found = _TERM.search(text)
    if found is None:
        return escape(text)
    means = _BY_FOLDED[found[0].casefold()]
    word = Markup('<dfn tabindex="0" data-means="{}">{}</dfn>').format(means, found[0])
    return escape(text[: found.start()]) + word + escape(text[found.end() :])
