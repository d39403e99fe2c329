import gzip
import sys
import traceback
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from reg4pru_monai import __version__
from reg4pru_monai.batch.volumes import encode_dicom_seg, encode_nifti
from reg4pru_monai.fundus import FundusReadError

ROWS, COLUMNS = 24, 32
MASKS = np.random.default_rng(0).random((3, ROWS, COLUMNS)) < 0.3
DIGESTS = ("w" * 64, "s" * 64)


@pytest.fixture
def dicoms() -> Any:
    """The generators of DICOM files, or a skip."""
    pytest.importorskip("highdicom", reason="needs the extra [dicom]")
    import dicoms

    return dicoms


@pytest.fixture
def photograph(tmp_path: Path, dicoms: Any) -> Path:
    return dicoms.native(tmp_path / "photograph", dicoms.RGB)


@pytest.fixture
def sequence(tmp_path: Path, dicoms: Any) -> Path:
    """Three frames, with everything that highdicom takes for a volume."""
    return dicoms.native(
        tmp_path / "sequence", dicoms.RGB, dicoms.RGB.tobytes() * 3, frames=3, FrameOfReferenceUID="1.2.3"
    )


def test_segmentation_of_a_photograph(tmp_path: Path, photograph: Path) -> None:
    import highdicom
    import pydicom

    (tmp_path / "seg.dcm").write_bytes(encode_dicom_seg(photograph, MASKS[:1], *DIGESTS))
    found, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(photograph)
    np.testing.assert_array_equal(found.pixel_array, MASKS[0])
    assert (found.Rows, found.Columns, int(found.NumberOfFrames)) == (ROWS, COLUMNS, 1)
    assert (found.Modality, found.SegmentationType) == ("SEG", "BINARY")
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
        assert found[keyword].value == source[keyword].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.SOPInstanceUID != source.SOPInstanceUID
    assert found.PatientOrientation == ""
    segment = highdicom.seg.segread(tmp_path / "seg.dcm").get_segment_description(1)
    assert segment.segment_label == "Retinal blood vessel"
    assert segment.segmented_property_type.value == "59820001"
    assert segment.segmented_property_category.value == "91723000"
    assert [region.value for region in segment.anatomic_regions] == ["5665001"]
    assert segment.algorithm_type.value == "AUTOMATIC"
    (algorithm,) = segment.algorithm_identification
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("reg4pru-monai", __version__)
    assert algorithm.AlgorithmParameters == f"weights={DIGESTS[0]},settings={DIGESTS[1]}"
    (measures,) = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.PixelSpacing == [0.011, 0.012]


def test_segmentation_refers_to_its_source(tmp_path: Path, photograph: Path, sequence: Path) -> None:
    import pydicom

    for path, frames in ((photograph, [None]), (sequence, [1, 2, 3])):
        (tmp_path / "seg").write_bytes(encode_dicom_seg(path, MASKS[: len(frames)], *DIGESTS))
        found, source = pydicom.dcmread(tmp_path / "seg"), pydicom.dcmread(path)
        (series,) = found.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == source.SeriesInstanceUID
        references = [series.ReferencedInstanceSequence[0], found.SourceImageSequence[0]]
        derived = [
            item.DerivationImageSequence[0].SourceImageSequence for item in found.PerFrameFunctionalGroupsSequence
        ]
        assert [image.get("ReferencedFrameNumber") for (image,) in derived] == frames
        for reference in (*references, *(image for (image,) in derived)):
            assert reference.ReferencedSOPClassUID == source.SOPClassUID
            assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_segmentation_of_many_frames(tmp_path: Path, sequence: Path) -> None:
    import highdicom

    (tmp_path / "seg").write_bytes(encode_dicom_seg(sequence.read_bytes(), list(MASKS), *DIGESTS))
    found = highdicom.seg.segread(tmp_path / "seg")
    np.testing.assert_array_equal(found.pixel_array, MASKS)
    source = found.SourceImageSequence[0].ReferencedSOPInstanceUID
    by_frame = found.get_pixels_by_source_frame(source, [3, 1], segment_numbers=[1])
    np.testing.assert_array_equal(by_frame[..., 0], MASKS[[2, 0]])
    indices = [item.FrameContentSequence[0].DimensionIndexValues for item in found.PerFrameFunctionalGroupsSequence]
    assert indices == [[1, 1], [1, 2], [1, 3]]
    assert len(found.DimensionIndexSequence) == 2


def test_empty_masks_are_frames_too(tmp_path: Path, sequence: Path) -> None:
    import pydicom

    masks = MASKS * np.array([True, False, True])[:, None, None]
    (tmp_path / "seg").write_bytes(encode_dicom_seg(sequence, masks, *DIGESTS))
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "seg").pixel_array, masks)
    (tmp_path / "seg").write_bytes(encode_dicom_seg(sequence, masks & False, *DIGESTS))
    assert not pydicom.dcmread(tmp_path / "seg").pixel_array.any()


def test_the_same_run_writes_the_same_bytes(tmp_path: Path, sequence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    import highdicom.base

    def written(*digests: str) -> bytes:
        return encode_dicom_seg(sequence, MASKS, *digests)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls(2099, 1, 2, 3, 4, 5)

    first = written(*DIGESTS)
    monkeypatch.setattr(highdicom.base.datetime, "datetime", Later)
    assert written(*DIGESTS) == first
    assert written("other", DIGESTS[1]) != first
    assert written(DIGESTS[0], "other") != first


def test_identifiers_follow_source_weights_and_settings(tmp_path: Path, dicoms: Any) -> None:
    import pydicom

    def identifiers(instance: str, *digests: str) -> tuple[str, str]:
        source = dicoms.native(tmp_path / "source", dicoms.RGB, SOPInstanceUID=instance)
        (tmp_path / "seg").write_bytes(encode_dicom_seg(source, MASKS[:1], *digests))
        found = pydicom.dcmread(tmp_path / "seg")
        return found.SeriesInstanceUID, found.SOPInstanceUID

    one, two = identifiers("1.2.1", *DIGESTS), identifiers("1.2.2", *DIGESTS)
    assert one[0] == two[0]  # photographs of a series stay together
    assert one[1] != two[1]
    assert not set(one) & set(identifiers("1.2.1", "other", DIGESTS[1]))
    assert not set(one) & set(identifiers("1.2.1", DIGESTS[0], "other"))


def test_sources_without_patient_and_dates(tmp_path: Path, dicoms: Any) -> None:
    """As de-identification leaves them."""
    import pydicom

    bare = dicoms.data_set(dicoms.RGB, PatientOrientation=["L", "F"])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        delattr(bare, keyword)
    for keyword in ("AccessionNumber", "ReferringPhysicianName", "PixelSpacing"):
        delattr(bare, keyword)
    bare.PixelData = dicoms.RGB.tobytes()
    (tmp_path / "seg").write_bytes(encode_dicom_seg(dicoms.save(tmp_path / "a", bare), MASKS[:1], *DIGESTS))
    found = pydicom.dcmread(tmp_path / "seg")
    assert not found.PatientName
    assert "PixelMeasuresSequence" not in found.SharedFunctionalGroupsSequence[0]
    assert (found.ContentDate, found.PatientOrientation) == ("19000101", ["L", "F"])


def test_sources_of_unknown_class(tmp_path: Path, dicoms: Any) -> None:
    import pydicom

    source = dicoms.native(tmp_path / "a", dicoms.RGB, SOPClassUID="1.2.3.4.5")
    (tmp_path / "seg").write_bytes(encode_dicom_seg(source, MASKS[:1], *DIGESTS))
    assert pydicom.dcmread(tmp_path / "seg").SourceImageSequence[0].ReferencedSOPClassUID == "1.2.3.4.5"


def test_what_no_segmentation_can_be_made_of(tmp_path: Path, dicoms: Any, photograph: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(ValueError, match=r"a\.png: is not DICOM, and a DICOM segmentation needs a DICOM photograph"):
        encode_dicom_seg(tmp_path / "a.png", MASKS[:1], *DIGESTS)
    with pytest.raises(ValueError, match="the source: is not DICOM"):
        encode_dicom_seg(b"\xff\xd8\xff", MASKS[:1], *DIGESTS)
    with pytest.raises(FundusReadError, match="absent: cannot be opened: No such file"):
        encode_dicom_seg(tmp_path / "absent", MASKS[:1], *DIGESTS)
    for masks, found in ((MASKS, r"3 of \(24, 32\)"), ([], "0 of "), (MASKS[:1, :-1], r"1 of \(23, 32\)")):
        with pytest.raises(
            ValueError, match=rf"masks must be 1 of \(24, 32\) as the frames of their source, got {found}"
        ):
            encode_dicom_seg(photograph, masks, *DIGESTS)
    with pytest.raises(ValueError, match=r"mask must be \(H, W\) bool, got \(24, 32\) uint8"):
        encode_dicom_seg(photograph, MASKS[:1].astype(np.uint8), *DIGESTS)
    bare = dicoms.native(tmp_path / "bare", dicoms.RGB, StudyInstanceUID="")
    with pytest.raises(ValueError, match="bare: a DICOM segmentation needs its StudyInstanceUID, which it lacks"):
        encode_dicom_seg(bare, MASKS[:1], *DIGESTS)


def test_no_error_names_the_patient(tmp_path: Path, dicoms: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither one by highdicom about the patient's elements, nor what it warns."""
    whole = dicoms.native(tmp_path / "a", dicoms.RGB).read_bytes()
    broken = whole.replace(b"CS\x02\0F ", b"CS\x02\0GE")  # the sex
    assert broken != whole
    with pytest.raises(ValueError, match="no DICOM segmentation can be made of this source") as refused:
        encode_dicom_seg(broken, MASKS[:1], *DIGESTS)
    said = "".join(traceback.format_exception(refused.value)) + "".join(capfd.readouterr())
    assert dicoms.SECRET not in said
    assert "GE" not in str(refused.value)
    frames = dicoms.native(tmp_path / "c", dicoms.RGB, NumberOfFrames=100000).read_bytes()
    with pytest.raises(FundusReadError, match=r"it is truncated or damaged.* \(ValueError\)") as refused:
        encode_dicom_seg(frames.replace(b"100000", dicoms.SECRET.encode()), MASKS[:1], *DIGESTS)
    assert dicoms.SECRET not in "".join(traceback.format_exception(refused.value))
    name = dicoms.native(tmp_path / "b", dicoms.RGB, PatientName=dicoms.SECRET)  # highdicom finds it suspicious
    (tmp_path / "seg").write_bytes(encode_dicom_seg(name, MASKS[:1], *DIGESTS))
    assert dicoms.SECRET not in "".join(capfd.readouterr())


def test_without_highdicom(tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ValueError, match=r"need highdicom: pip install pydicom highdicom"):
        encode_dicom_seg(photograph, MASKS[:1], *DIGESTS)


def test_nifti(tmp_path: Path) -> None:
    (tmp_path / "a.b.nii.gz").write_bytes(encode_nifti(MASKS[0], (0.02, 0.01)))
    image = nib.load(tmp_path / "a.b.nii.gz")
    assert image.shape == (COLUMNS, ROWS, 1)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0].T, MASKS[0])
    np.testing.assert_allclose(image.header.get_zooms(), (0.01, 0.02, 1))
    assert image.header.get_xyzt_units()[0] == "mm"
    # Along a row to the left of the patient, which radiological viewers show on the right; down a column to the back.
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    for code in ("qform_code", "sform_code"):
        assert image.header[code] > 0
    np.testing.assert_allclose(image.get_qform(), image.get_sform())


def test_nifti_without_a_scale(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(encode_nifti(MASKS[0]))
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.header.get_xyzt_units()[0] == "unknown"
    np.testing.assert_allclose(image.header.get_zooms(), 1)


def test_nifti_is_gzipped_and_the_same_every_time() -> None:
    data = encode_nifti(MASKS[0])
    assert data == encode_nifti(MASKS[0])
    assert data[4:8] == bytes(4)  # no date
    assert gzip.decompress(data)[344:347] == b"n+1"


def test_what_nifti_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"mask must be \(H, W\) bool, got \(3, 24, 32\) bool"):
        encode_nifti(MASKS)
    with pytest.raises(ValueError, match=r"NIfTI holds at most 32767 pixels a side, got \(32768, 1\)"):
        encode_nifti(np.zeros((32768, 1), bool))
