"""Model 3 of the study (U-Net and DeepLabV3, learning mutually) on PASCAL VOC 2012, 21 classes.

Data:      1,464 training and 1,449 validation images.
Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024, Table 1, Model 3; the method is
           Zhang et al., "Deep Mutual Learning", CVPR 2018. The student, the U-Net, is the network reported.
Command:   python -m jaxseg.main --config=configs/mutual_voc.py --config.data.source_dir=FOLDER
           (on a machine without a GPU: --config.train.batch_size=2 --config.peers.teacher.model.backbone=resnet14)
Teacher:   starts from fresh weights; from torchvision's, as in the released code, with a fresh head:
           --config.peers.teacher.model.init_from=torchvision/deeplabv3_resnet50_coco
           --config.peers.teacher.model.init_parts=all_but_head
Variants:  configs/mutual_voc.py:report does what the study's longer report says: batches of 10, Adam at 1e-4, and what
           configs/unet_voc.py:report does. configs/mutual_voc.py:released does what the study's released code
           does: the same batches and rate, its loss in place of the KL divergence, over all pixels, the teacher updated
           before the student, and what configs/unet_voc.py:released does. The weights of the teacher still have to be
           given, as above.
Time:      36,600 steps of 8 images; :report and :released 29,280 of 10.
Expected:  the paper reports IoU 0.2203, Acc 0.7539 for :released. Not run to the end here yet.
"""

from jaxseg.config import check_variant, default, follow_released_mutual, follow_report_mutual, use_mutual_learning


def get_config(variant: str = ""):
    check_variant(variant, ("report", "released"))
    config = default()
    config.data.name = "voc2012"
    use_mutual_learning(config)
    if variant == "report":
        follow_report_mutual(config)
    if variant == "released":
        follow_released_mutual(config)
    return config
